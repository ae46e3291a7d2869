"""How cost grows: an epoch with images, a step with tokens, DVC's bookkeeping with runs.

Run: python benchmarks/scaling.py [epoch] [step] [dvc]     (default: all, about four minutes on two cores)

Writes benchmarks/results/scaling_{epoch,step,dvc}.json and scaling.png. A ratio is the growth of the size
over the growth of the cost since the smallest case: 1 is linear, above 1 is better than linear.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from replicate.cost.bench import RESULTS, row, write_results
from replicate.cost.rates import median_seconds
from replicate.loaders import Augmentation, open_loader
from replicate.loaders.writer import WriteSettings, write_beton
from replicate.models.mae import MAE

IMAGES = (1000, 2000, 5000, 11000, 22000)
GRIDS = (4, 7, 10, 14, 20, 28)
STAGES = (10, 30, 100, 300, 1000)
AXES = {"epoch": "images", "step": "tokens", "dvc": "stages"}


class Noise:
    """Random raw images, as costly to read as any of that size, without files."""

    class_names = ["a", "b"]

    def __init__(self, count: int, size: int = 32) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)
        self.labels = np.arange(count) % 2
        self.names = [str(index) for index in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        return self.pixels[index % len(self.pixels)]


def epochs(clock: Callable[[], float]) -> dict[int, float]:
    """CPU seconds of one epoch, loader and training step, of a small masked autoencoder."""
    found = {}
    model = MAE(32, 8, 32, 2, 2, 32, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        for count in IMAGES:
            path = Path(folder) / f"{count}.beton"
            write_beton(path, Noise(count), WriteSettings(mode="raw"), progress=False)
            options = {
                "batch_size": 128,
                "image_size": 32,
                "augmentation": Augmentation(),
                "seed": 0,
                "train": True,
                "workers": 1,
            }
            with open_loader("beton", path, **options) as loader:
                start = clock()
                for images, _, _ in loader.epoch(0):
                    model(images / 255).pred.square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                found[count] = clock() - start
    return found


def steps(clock: Callable[[], float]) -> dict[int, float]:
    """CPU seconds of one step of an encoder that sees every token, by the number of tokens."""
    found = {}
    for side in GRIDS:
        model = MAE(side * 8, 8, 128, 4, 2, 64, 1, 2, mask_ratio=0.0)
        images = torch.randn(4, 3, side * 8, side * 8)
        found[side * side] = median_seconds(
            lambda m=model, x=images: m(x).pred.square().mean().backward(), 3, clock
        )
    return found


def bookkeeping() -> dict[int, float]:
    """CPU seconds of a `dvc repro` with so many stages, all up to date, each with a file of inputs."""
    found = {}
    for count in STAGES:
        with tempfile.TemporaryDirectory() as folder:
            _finished_project(Path(folder), count)
            before = _children_seconds()
            _dvc(folder, "repro", "-q")
            found[count] = _children_seconds() - before
    return found


def _finished_project(folder: Path, count: int) -> None:
    """Write a pipeline whose stages have all run, as DVC would: running them would take too long."""
    runs = {f"run_{index}": {"rate": index} for index in range(count)}
    (folder / "inputs").mkdir()
    done = {}
    for name, run in runs.items():
        content = json.dumps({"stated": run}).encode()
        (folder / "inputs" / f"{name}.json").write_bytes(content)
        dependency = {
            "path": f"inputs/{name}.json",
            "hash": "md5",
            "md5": hashlib.md5(content).hexdigest(),
            "size": len(content),
        }
        done[f"train@{name}"] = {"cmd": "true", "deps": [dependency]}
    stage = {"cmd": "true", "deps": ["inputs/${key}.json"]}
    _write_yaml(folder / "params.yaml", {"runs": runs})
    _write_yaml(folder / "dvc.yaml", {"stages": {"train": {"foreach": "${runs}", "do": stage}}})
    _write_yaml(folder / "dvc.lock", {"schema": "2.0", "stages": done})
    _dvc(folder, "init", "--no-scm", "-q")
    if count == STAGES[0] and _dvc(folder, "status").strip() != "Data and pipelines are up to date.":
        raise SystemExit("dvc does not find the stages finished")


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.dump(content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False))


def _dvc(folder: str | Path, *arguments: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rows(kind: str, found: dict[int, float]) -> list[dict[str, Any]]:
    (least, base), *_ = found.items()
    lines = []
    for size, seconds in found.items():
        linear = base * size / least
        own = {"size": size, "unit": "CPU s"}
        lines.append(row(f"scaling_{kind}", f"{size} {AXES[kind]}", seconds, linear, linear / seconds, **own))
    return lines


def draw() -> Path:
    """Draw the curves of all files, each with a line through its first point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    from replicate.report import style  # noqa: F401

    kinds = [kind for kind in AXES if (RESULTS / f"scaling_{kind}.json").exists()]
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(4.2 * len(kinds), 3.2), squeeze=False, layout="constrained"
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        lines = json.loads((RESULTS / f"scaling_{kind}.json").read_text())
        sizes, seconds = [line["size"] for line in lines], [line["ours"] for line in lines]
        axis.loglog(sizes, seconds, marker="o", label="measured")
        axis.loglog(sizes, [line["theirs"] for line in lines], linestyle="--", color="grey", label="linear")
        axis.set(
            xlabel=AXES[kind],
            ylabel="CPU seconds",
            title={"epoch": "an epoch", "step": "a step", "dvc": "dvc repro, up to date"}[kind],
        )
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.legend()
    path = RESULTS / "scaling.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", choices=[[], *AXES], help="default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = {
        "epoch": lambda: epochs(time.process_time),
        "step": lambda: steps(time.process_time),
        "dvc": bookkeeping,
    }
    for kind in options.kinds or AXES:
        write_results(f"scaling_{kind}", rows(kind, measured[kind]()))
    print(draw())


if __name__ == "__main__":
    main()
