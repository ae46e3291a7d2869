"""Pictures of one image's patches: masked ones faded, and a map of their P2Dist."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from replicate.report.style import HEATMAP, HEIGHT, Figure, one

P2DIST = "P2Dist (pixels of a 16-pixel patch)"
COVER = 0.25  # share of the picture that shows through a masked patch
BLUE = (0.35, 0.55, 0.85)


def faded(raw: Tensor, mask: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """uint8 image (3, H, W) -> (H, W, 3) in 0..1, its masked patches faded towards blue."""
    rows, columns = grid
    patch = np.ones((raw.shape[1] // rows, raw.shape[2] // columns))
    hidden = np.kron(mask.view(grid).numpy(), patch)[..., None]
    picture = raw.permute(1, 2, 0).numpy() / 255
    return picture * (1 - hidden) + hidden * (COVER * picture + (1 - COVER) * np.array(BLUE))


def p2dist_map(distance: np.ndarray, beta: float | None = None, axes: Axes | None = None) -> Figure:
    """P2Dist of every patch (rows, columns) in pixels; patches beyond `beta` get a cross."""
    figure, axis = (axes.figure, axes) if axes is not None else one(width=HEIGHT * 1.2)
    image = axis.imshow(np.where(distance > 0, distance, np.nan), cmap=HEATMAP)
    figure.colorbar(image, ax=axis, label="P2Dist (pixels)")
    if beta is not None:
        rows, columns = np.nonzero(distance > beta)
        axis.scatter(columns, rows, marker="x", color="white", s=14, linewidths=1)
        masked, decoded = int((distance > 0).sum()), int(((distance > 0) & (distance <= beta)).sum())
        axis.set_title(f"decoded {decoded} of {masked} masked patches")
    axis.set(xticks=[], yticks=[])
    return figure
