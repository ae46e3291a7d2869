"""Predictions of finished dense runs as pictures: classes of pixels, boxes and instance masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch

from replicate.loaders.manifest import FILE_NAME, Manifest
from replicate.models.weights import load_weights
from replicate.trainers.session import Session
from replicate.transfer.ade import IGNORED
from replicate.transfer.data import masked_images

if TYPE_CHECKING:
    from replicate.config import DenseRun, Params

IMAGE, TRUTH, PREDICTION = "image", "truth", "prediction"
COVER = 0.6
"""Share of a class's colour over the picture."""
LEAST_SCORE = 0.5
COLOURS = "tab20"

Views = dict[str, np.ndarray]


def predictions(
    params: Params,
    name: str,
    *,
    budget: str | None = None,
    images: int = 4,
    least_score: float = LEAST_SCORE,
    root: Path = Path(),
) -> list[Views]:
    """Validation images through a finished run: title -> (H, W, 3) in 0..1, the truth beside the prediction.

    least_score  of a detection that is drawn. Raises UserError when the weights cannot be read.
    """
    run = params.resolve(name, budget)
    source = params.resolve(run.pretrain, budget)
    manifest = Manifest.read(root / params.data_folder(run.dataset, budget) / FILE_NAME)
    state = load_weights(root / params.results_folder(name, budget) / "weights" / "seed0.safetensors")
    if run.protocol == "detect":
        return _detected(run, source, manifest, state, images, least_score)
    return _segmented(run, source, manifest, state, images)


def painted(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) under the colours of classes (H, W); `IGNORED` shows the image as it is."""
    colours = matplotlib.colormaps[COLOURS](classes % 20)[..., :3]
    cover = COVER * (classes != IGNORED)[..., None]
    return image / 255 * (1 - cover) + colours * cover


def outlined(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) with instances: boxes (n, 4) as x1, y1, x2, y2, labels (n,), masks (n, H, W)."""
    shown = image / 255
    for box, label, mask in zip(boxes, labels, masks.astype(bool), strict=True):
        colour = np.array(matplotlib.colormaps[COLOURS](int(label) % 20)[:3])
        shown[mask] = shown[mask] * (1 - COVER) + colour * COVER
        left, top, right, bottom = box.round().astype(int)
        right, bottom = min(right, image.shape[1] - 1), min(bottom, image.shape[0] - 1)
        shown[[top, bottom], left : right + 1] = colour
        shown[top : bottom + 1, [left, right]] = colour
    return shown


def _chosen(count: int, images: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, images).round().astype(int).tolist()))


def _segmented(run: DenseRun, source, manifest: Manifest, state, images: int) -> list[Views]:
    from replicate.transfer.segmentation import build_model, predict

    model = build_model(source, run, len(manifest.class_names))
    model.load_state_dict(state)
    found, session = masked_images(manifest, "val"), Session(torch.device("cpu"), torch.float32)
    views = []
    for index in _chosen(len(found), images):
        image, mask = found.pair(index)
        classes = predict(model.eval(), image, run, session).argmax(0).numpy()
        views.append({IMAGE: image / 255, TRUTH: painted(image, mask), PREDICTION: painted(image, classes)})
    return views


def _detected(
    run: DenseRun, source, manifest: Manifest, state, images: int, least_score: float
) -> list[Views]:
    from replicate.transfer.coco import CocoImages
    from replicate.transfer.detection import build_model, detect

    model = build_model(source, run, len(manifest.class_names))
    model.load_state_dict(state)
    stated = manifest.splits["val"]
    found = CocoImages(stated["image_folder"], stated["annotations"])
    views = []
    for index in _chosen(len(found.images), images):
        image, truth = found.pixels(index), found.objects(index)
        [one] = detect(model.eval(), [image])
        kept = {key: value[one["scores"] >= least_score].numpy() for key, value in one.items()}
        drawn = outlined(image, kept["boxes"], kept["labels"], kept["masks"])
        real = outlined(image, _boxes(truth.masks), truth.labels, truth.masks)
        views.append({IMAGE: image / 255, TRUTH: real, PREDICTION: drawn})
    return views


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Corners (n, 4) around masks (n, H, W) that are not empty."""
    found = [np.nonzero(mask) for mask in masks]
    corners = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in found]
    return np.array(corners, float).reshape(-1, 4)
