"""FastMIM's step against the frameworks of the paper's Figure 2 and Table 3, at equal batch: time and memory.

Run: python benchmarks/fastmim_step.py [--batch 16] [--rounds 3] [--precision bfloat16|float32] [--swin-l]

A step is target, forward, the framework's own loss and backward. The optimiser is left out: at a batch of
2048 images it costs little. FastMIM runs at 128 pixels; MAE, SimMIM and MaskFeat at 224; Swin's SimMIM also
at its paper's 192. Memory is what autograd keeps for the backward pass, the same on every machine, and the
peak of one step. On a GPU the peak is the allocator's; on a CPU it is a new process's, less what it held
before it built the model.

ratio = theirs / FastMIM's. `published` is the ratio of Table 3's GPU hours per epoch. For memory it is the
range that section 5.1 reads off Figure 2, whose values exist only as an image. The paper prints nothing for
Swin-B's SimMIM at 224 pixels; its "4.8 times" compares whole trainings, 800 epochs at 192 pixels against 400
epochs.

Rows of a CPU are in fastmim_step.json, rows of a GPU in fastmim_step_cuda.json.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from replicate import targets
from replicate.config.backbones import VIT_SIZES
from replicate.cost.bench import Timing, compare, interleave, write_results
from replicate.loaders.pixels import normalise
from replicate.losses.reconstruction import reconstruction_loss
from replicate.models.activations import activation_bytes
from replicate.models.backbones import build_encoder
from replicate.models.cpu import plain_torch, tune_for_cpu
from replicate.models.mae import MAE
from replicate.models.mim import BASELINES, MIM

MEMORY_SAVING = [2.0, 3.33]
"""50 to 70 % less, sec 5.1."""


def mim(
    backbone: str, size: int, target: str, baseline: str | None = None, **options: Any
) -> tuple[nn.Module, nn.Module]:
    encoder = build_encoder(backbone, size)
    what = targets.build(
        target, min(encoder.stride, 32), **({"norm_pix": False} if target == "pixel" else {})
    )
    return MIM(encoder, what.dim, **(BASELINES[baseline] if baseline else {}), **options), what


def mae(decoder_depth: int) -> tuple[nn.Module, nn.Module]:
    return MAE(**VIT_SIZES["base"], decoder_depth=decoder_depth), targets.build("pixel", 16)


class Framework(NamedTuple):
    """hours: published hours per epoch over FastMIM's; norm: of its loss
    (`replicate.losses.reconstruction.NORMS`).
    """

    size: int
    build: Callable[[], tuple[nn.Module, nn.Module]]
    hours: float | None
    norm: str = "mse"


def fastmim(backbone: str, decoder_depth: int, decoder_embed_dim: int = 256) -> Framework:
    return Framework(
        128,
        partial(mim, backbone, 128, "hog", decoder_depth=decoder_depth, decoder_embed_dim=decoder_embed_dim),
        1.0,
    )


def simmim(backbone: str, size: int, hours: float | None) -> Framework:
    return Framework(size, partial(mim, backbone, size, "pixel", "simmim"), hours, "l1")


FRAMEWORKS: dict[str, dict[str, Framework]] = {
    "ViT-B": {
        "FastMIM": fastmim("vit_base_patch16", 1),
        "MAE 8b512d": Framework(224, partial(mae, 8), 1.3 / 0.8),
        "MAE 1b512d": Framework(224, partial(mae, 1), None),
        "SimMIM": simmim("vit_base_patch16", 224, 4.1 / 0.8),
        "MaskFeat": Framework(224, partial(mim, "vit_base_patch16", 224, "hog", "maskfeat"), 1.6 / 0.8),
    },
    "Swin-B": {
        "FastMIM": fastmim("swin_base", 4),
        "SimMIM": simmim("swin_base", 224, None),
        "SimMIM 192 px": simmim("swin_base", 192, 2.0 / 0.8),
    },
    "Swin-L": {
        "FastMIM": fastmim("swin_large", 4, 512),
        "SimMIM": simmim("swin_large", 224, None),
        "SimMIM 192 px": simmim("swin_large", 192, 3.5 / 1.4),
    },
}


class Case(NamedTuple):
    """A framework ready to run."""

    model: nn.Module
    target: nn.Module
    raw: Tensor
    precision: torch.dtype
    norm: str

    def loss(self, images: int | None = None) -> Tensor:
        raw = self.raw[:images]
        with torch.autocast(raw.device.type, self.precision, enabled=self.precision != torch.float32):
            prediction = self.model(normalise(raw))
        return reconstruction_loss(prediction.pred, self.target(raw), prediction.scored, norm=self.norm)

    def step(self) -> None:
        self.loss().backward()
        self.model.zero_grad(set_to_none=True)

    def bytes_per_image(self) -> float:
        """What one more image adds, on torch's own kernels; autocast copies the weights once a batch."""
        with plain_torch():
            few, more = (
                activation_bytes(partial(self.loss, images), self.model.parameters()) for images in (1, 3)
            )
        return (more - few) / 2


def ready(backbone: str, name: str, batch: int, precision: str, device: str) -> Case:
    framework = FRAMEWORKS[backbone][name]
    torch.manual_seed(0)
    model, target = framework.build()
    if device == "cpu":
        tune_for_cpu(model)
    raw = torch.randint(0, 256, (batch, 3, framework.size, framework.size), dtype=torch.uint8).to(device)
    return Case(model.to(device), target, raw, getattr(torch, precision), framework.norm)


def resident(which: str) -> int | None:
    """Bytes that this process holds ("VmRSS") or held at most ("VmHWM"); None outside Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:")), None)


def cuda_peak(step: Callable[[], object]) -> int:
    """Most bytes that the CUDA allocator held at once during `step()`."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def peak_here(*arguments: Any) -> int | None:
    """What building a framework and one step of it add to the memory of this process at most."""
    before = resident("VmRSS")
    ready(*arguments).step()
    after = resident("VmHWM")
    return after - before if before and after else None


def peak_of_a_process(*arguments: Any) -> int | None:
    """`peak_here` in a new process: this one could reuse memory that it has freed."""
    answer = subprocess.run(
        [sys.executable, __file__, "--peak", *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout
    return int(answer) if answer.strip().isdigit() else None


def measure(backbone: str, batch: int, rounds: int, precision: str, device: str) -> list[dict[str, Any]]:
    cases, kept, peaks = {}, {}, {}
    for name in FRAMEWORKS[backbone]:  # each alone, before the others hold memory
        arguments = (backbone, name, batch, precision, device)
        if device == "cpu":
            peaks[name] = peak_of_a_process(*arguments)
        else:
            peaks[name] = cuda_peak(lambda at=arguments: ready(*at).step())
        gc.collect()
    for name in FRAMEWORKS[backbone]:
        case = ready(backbone, name, batch, precision, device)
        cases[name], kept[name] = case.step, case.bytes_per_image()
        gc.collect()
    times = interleave(cases, rounds)
    rows = []
    for name in list(cases)[1:]:
        framework = FRAMEWORKS[backbone][name]
        where = f"{backbone} at {framework.size} px, batch {batch}, {precision}, {device}"
        extra = {"device": device, "threads": torch.get_num_threads()}
        rows.append(
            compare(
                f"step: FastMIM vs {name}",
                where,
                times["FastMIM"],
                times[name],
                published=framework.hours,
                **extra,
            )
        )
        memory = extra | {"published": MEMORY_SAVING if name != "MaskFeat" else None}
        both = [Timing((kept[key],)) for key in ("FastMIM", name)]
        rows.append(compare(f"activations: FastMIM vs {name}", where, *both, unit="bytes/image", **memory))
        if peaks[name] and peaks["FastMIM"]:
            both = [Timing((peaks[key],)) for key in ("FastMIM", name)]
            rows.append(compare(f"peak memory: FastMIM vs {name}", where, *both, unit="bytes", **memory))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--swin-l", action="store_true", help="Swin-L too, which takes about twice the time of Swin-B"
    )
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        backbone, name, batch, precision, device = options.peak
        print(peak_here(backbone, name, int(batch), precision, device))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for backbone in [key for key in FRAMEWORKS if key != "Swin-L" or options.swin_l]:
        rows += measure(backbone, options.batch, options.rounds, options.precision, device)
    write_results("fastmim_step" if device == "cpu" else f"fastmim_step_{device}", rows)


if __name__ == "__main__":
    main()
