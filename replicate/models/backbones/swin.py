"""Swin Transformer (timm's) whose windows and relative position tables follow the resolution (FastMIM sec 4, A.3.2)."""

from __future__ import annotations

import warnings
from functools import partial

from torch import Tensor, nn

import replicate.compat  # noqa: F401
from replicate.config.hierarchies import Hierarchy
from replicate.models.backbones.features import FeatureMap
from replicate.models.backbones.resample import replace_data, resample_window_bias, square
from replicate.models.resized import Resized
from replicate.patches import pair

from timm.models.swin_transformer import SwinTransformer  # isort: skip  (after replicate.compat)

_TABLE = "relative_position_bias_table"


def window_at(image_size: tuple[int, int], patch_size: int, windows_across: int) -> tuple[int, int]:
    """The window (rows, columns) of tokens that puts `windows_across` windows along a side of the first stage, at least 2."""
    return tuple(max(2, round(side / patch_size / windows_across)) for side in image_size)


class Swin(FeatureMap, SwinTransformer):
    """Swin with a window that grows with the image: a stage has the same number of windows at every resolution."""

    def __init__(self, image_size: tuple[int, int], patch_size: int, windows_across: int, **kwargs) -> None:
        window = window_at(image_size, patch_size, windows_across)
        super().__init__(img_size=image_size, patch_size=patch_size, window_size=window, **kwargs)
        self.windows_across = windows_across

    def set_input_size(self, img_size: int | tuple[int, int]) -> Resized:
        """Sets the windows for another image size and resamples the relative position tables, bicubic, each in its place."""
        size, attentions = pair(img_size), self._attentions()
        before = {name: (attention.window_size, attention.relative_position_bias_table) for name, attention in attentions.items()}
        window = window_at(size, self.patch_embed.patch_size[0], self.windows_across)
        with warnings.catch_warnings():  # timm's own resampling, which is not used, warns of its indexing
            warnings.simplefilter("ignore")
            super(FeatureMap, self).set_input_size(img_size=size, window_size=window)
        resized: Resized = {}
        for name, attention in attentions.items():
            old_window, table = before[name]
            # timm put a new parameter in the table's place; the optimiser knows the old one.
            attention.relative_position_bias_table = table
            resample = partial(resample_window_bias, old_window=old_window, new_window=attention.window_size)
            replace_data(table, resample, resized)
        return resized

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tables of square windows of another size, resampled to this model's windows; those of the same shape stay as they are."""
        fitted = dict(state)
        for name, attention in self._attentions().items():
            key = f"{name}.{_TABLE}"
            if key in state and state[key].shape != attention.relative_position_bias_table.shape:
                side = (square(len(state[key]))[0] + 1) // 2
                fitted[key] = resample_window_bias(state[key], (side, side), attention.window_size)
        return fitted

    def _attentions(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.named_modules() if hasattr(module, _TABLE)}


def build(numbers: Hierarchy, name: str, image_size: tuple[int, int], in_chans: int, num_classes: int, drop_path: float) -> Swin:
    """Swin with these numbers; `num_classes` 0 leaves out the head."""
    model = Swin(
        image_size,
        numbers.patch_size,
        numbers.options["windows_across"],
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=numbers.dims[0],
        depths=numbers.depths,
        num_heads=numbers.heads,
        drop_path_rate=drop_path,
    )
    model.stride = numbers.stride
    return model
