"""timm's Swin Transformer with windows that follow the resolution (FastMIM, section 4 and A.3.2)."""

from __future__ import annotations

import warnings
from functools import partial

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from replicate.config.hierarchies import Hierarchy
from replicate.models.features import FeatureMap, Size
from replicate.models.resample import resample_grid, resample_window_bias, span, trained_grid
from replicate.models.resized import Resized, replace_data
from replicate.patches import pair

_TABLE = "relative_position_bias_table"


def window_at(image_size: tuple[int, int], patch_size: int, windows_across: int) -> tuple[int, int]:
    """The window (rows, columns) that fits `windows_across` times into the first stage; at least 2."""
    return tuple(max(2, round(side / patch_size / windows_across)) for side in image_size)


class Swin(FeatureMap, SwinTransformer):
    """Swin with a window that grows with the image: a stage has as many windows at every resolution."""

    def __init__(self, image_size: tuple[int, int], patch_size: int, windows_across: int, **kwargs) -> None:
        window = window_at(image_size, patch_size, windows_across)
        super().__init__(img_size=image_size, patch_size=patch_size, window_size=window, **kwargs)
        self.windows_across = windows_across

    def set_input_size(self, img_size: int | tuple[int, int]) -> Resized:
        """Set the windows for another image size; resample the relative position tables in place."""
        size, attentions = pair(img_size), self._attentions()
        before = {name: (part.window_size, getattr(part, _TABLE)) for name, part in attentions.items()}
        window = window_at(size, self.patch_embed.patch_size[0], self.windows_across)
        with warnings.catch_warnings():  # timm's own resampling warns of its indexing; its result is not used
            warnings.simplefilter("ignore")
            super(FeatureMap, self).set_input_size(img_size=size, window_size=window)
        resized: Resized = {}
        for name, attention in attentions.items():
            old_window, table = before[name]
            # timm made a new parameter; keep the one that the optimiser holds.
            attention.relative_position_bias_table = table
            resample = partial(resample_window_bias, old=old_window, new=attention.window_size)
            replace_data(table, resample, resized)
        return resized

    def fit_state(
        self, state: dict[str, Tensor], trained_at: Size | None = None, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Relative position tables of other windows, resampled to this model's."""
        fitted = dict(state)
        for name, attention in self._attentions().items():
            table = state.get(f"{name}.{_TABLE}")
            if table is not None and table.ndim == 2:
                own = span(attention.window_size)
                stated = None if trained_at is None else span(self._window_of(name, trained_at))
                old = trained_grid(len(table), own, stated)
                fitted[f"{name}.{_TABLE}"] = resample_grid(table, old, own, antialias)
        return fitted

    def _window_of(self, attention: str, image_size: Size) -> Size:
        """The window of the attention called so at an image size: no larger than its stage's map."""
        patch, stage = self.patch_embed.patch_size[0], int(attention.split(".")[1])
        windows = window_at(image_size, patch, self.windows_across)
        return tuple(min(w, side // (patch * 2**stage)) for w, side in zip(windows, image_size, strict=True))

    def _attentions(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.named_modules() if hasattr(module, _TABLE)}


def build(
    numbers: Hierarchy, name: str, image_size: Size, in_chans: int, num_classes: int, drop_path: float
) -> Swin:
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
