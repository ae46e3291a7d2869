"""The kernel that executes notebooks: this interpreter's own, not another of the same name."""

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager


class OwnKernel(AsyncKernelManager):
    """Starts `python -m ipykernel_launcher` of this interpreter, where Jupyter would search JUPYTER_PATH."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir="", **get_kernel_dict())
