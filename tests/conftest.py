"""Settings that every test shares."""

import os
from pathlib import Path

# Before torch is imported, here or in a process that a test starts. One thread: the models are so small that
# threads would wait for one another, and equal sums need equal numbers of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with unpacked real images (`imagenet-sample-167/`, `tiny-imagenet-40/`), named by
    REPLICATE_REAL_DATA.
    """
    folder = os.environ.get("REPLICATE_REAL_DATA")
    if not folder:
        pytest.skip("REPLICATE_REAL_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty folder with the settings of the budget smoke, as the working directory."""
    from project import write_params

    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory) -> Path:
    """A project of 64 images at the smoke budget."""
    from project import write_params

    path = tmp_path_factory.mktemp("project")
    write_params(path, data={"train_images": 64, "val_images": 24})
    return path


@pytest.fixture(scope="module")
def small_params(small_folder):
    from replicate.config import load

    return load(small_folder / "params.yaml")
