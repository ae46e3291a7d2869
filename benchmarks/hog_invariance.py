"""How similar pixels and HOG at 224 and 128 pixels are, on photographs (FastMIM, Figures 3, 8 and 9).

Run: python benchmarks/hog_invariance.py --images FOLDER    (JPEG or PNG files at any depth)

Nothing is timed. The claim's verdict comes from the run `fastmim_invariance` at its budget's sizes. This is
the same comparison at the paper's sizes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from replicate.cost.bench import RESULTS, describe_machine
from replicate.intervals import mean
from replicate.loaders.crops import center_boxes
from replicate.loaders.decode import decode_image, resize_crop
from replicate.loaders.sources import images_in
from replicate.provenance import git_state
from replicate.targets.similarity import similarities

FULL, LOW = 224, 128


def central_crop(path: Path) -> torch.Tensor:
    """(3, 224, 224) uint8: the evaluation crop of all five papers."""
    pixels = decode_image(path.read_bytes(), str(path))
    [box] = center_boxes(np.array([pixels.shape[:2]]))
    return torch.from_numpy(resize_crop(pixels, box, False, FULL, "area").copy()).permute(2, 0, 1)


def with_interval(values: torch.Tensor) -> dict[str, float]:
    found = mean(values.tolist())
    return {"mean": round(found.value, 3), "low": round(found.low, 3), "high": round(found.high, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs, of any depth")
    folder = parser.parse_args().images
    files = images_in(folder)
    found = similarities(torch.stack([central_crop(path) for path in files]), LOW)
    row = {
        "name": "hog_invariance",
        "case": f"{FULL} -> {LOW} px",
        "source": folder.resolve().name,
        "images": len(files),
    }
    row |= {name: with_interval(values) for name, values in found.items()}
    row |= {"machine": describe_machine(), "revision": git_state()["revision"]}
    (RESULTS / "hog_invariance.json").write_text(json.dumps([row], indent=2) + "\n")
    print({name: row[name] for name in found})


if __name__ == "__main__":
    main()
