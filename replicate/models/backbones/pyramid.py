"""timm's hierarchies that take images of any size as they are, Twins-SVT, PVTv2 and ConvNeXt (v1, v2), and any other timm model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from torch import Tensor, nn

import replicate.compat  # noqa: F401
from replicate.config.hierarchies import Hierarchy
from replicate.errors import UserError
from replicate.models.backbones.features import FeatureMap
from replicate.models.backbones.resample import replace_data, square
from replicate.models.resized import Resized
from replicate.patches import grid_of, pair

import timm  # isort: skip  (after replicate.compat)
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table  # isort: skip  (after replicate.compat)


_TABLE = "relative_position_bias_table"
_REFUSED = re.compile(r"(?:unexpected|multiple values for) keyword argument '(\w+)'")


class OtherFeatureMap(FeatureMap):
    """Mixed into any timm model: position tables follow the resolution as timm lets them, each in its place."""

    def set_input_size(self, img_size: int | tuple[int, int]) -> Resized:
        """Takes images of another size from now on; position embeddings and relative position tables are resampled.

        Raises UserError when the model was built for one size, or the size does not fit its patches.
        """
        inherited = getattr(super(FeatureMap, self), "set_input_size", None)
        if inherited is None:
            if self.default_cfg.get("fixed_input_size"):
                raise UserError(f"backbone {self.default_cfg['architecture']!r} takes images of one size: image_size cannot change")
            return {}
        size = pair(img_size)
        grid_of(size, self.stride)
        before, old_grid = dict(self.named_parameters()), self._grid()
        with _without_timms_warning():
            inherited(img_size=size)
        resized: Resized = {}
        for name, new in list(self.named_parameters()):
            if new is before[name]:
                continue
            owner, _, leaf = name.rpartition(".")
            resample = self._resampler(name, new, old_grid)
            # timm put a new parameter in the table's place; the optimiser knows the old one.
            setattr(self.get_submodule(owner), leaf, before[name])
            replace_data(before[name], resample, resized)
        return resized

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Position tables of a square image of another size, resampled to this model's; equal shapes stay as they are."""
        fitted = dict(state)
        for name, parameter in self.named_parameters():
            if name in state and state[name].shape != parameter.shape and name.endswith(("pos_embed", _TABLE)):
                fitted[name] = self._resampler(name, parameter)(state[name])
        return fitted

    def _grid(self) -> tuple[int, int] | None:
        return getattr(getattr(self, "patch_embed", None), "grid_size", None)

    def _resampler(self, name: str, new: nn.Parameter, old_grid: tuple[int, int] | None = None) -> Callable[[Tensor], Tensor]:
        """What takes a tensor of another resolution, of a square grid when not given, to the shape of the parameter `new`."""
        owner, _, leaf = name.rpartition(".")
        grid = self._grid()
        if leaf == _TABLE and new.ndim == 2:
            window = self.get_submodule(owner).window_size
            return partial(_resized_table, window, tuple(new.shape))
        if name == "pos_embed" and new.ndim == 3 and grid is not None:
            prefix = new.shape[1] - grid[0] * grid[1]

            def resample(table: Tensor) -> Tensor:
                old = old_grid or square(table.shape[1] - prefix)
                return resample_abs_pos_embed(table, list(grid), list(old), prefix)

            return resample
        raise UserError(f"backbone {self.default_cfg['architecture']!r}: image_size cannot change, for no one knows how to resample {name}")


@contextmanager
def _without_timms_warning() -> Iterator[None]:
    """timm warns of the indexing in its own resampling of relative position tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _resized_table(window: tuple[int, int], shape: tuple[int, int], table: Tensor) -> Tensor:
    with _without_timms_warning():
        return resize_rel_pos_bias_table(table, new_window_size=window, new_bias_shape=shape)


@lru_cache
def _with_feature_map(kind: type[nn.Module], mixin: type[FeatureMap]) -> type[nn.Module]:
    return type(kind.__name__, (mixin, kind), {})


def adopt(model: nn.Module, stride: int, num_classes: int, mixin: type[FeatureMap] = FeatureMap) -> nn.Module:
    """The same timm model, able to do what `mixin` says; without classes its whole head goes, which no feature passes."""
    if not num_classes and hasattr(model, "head"):
        model.head = nn.Identity()
    # Changing the class keeps the model's state dict keys, which a wrapping module would prefix.
    model.__class__ = _with_feature_map(type(model), mixin)
    model.stride = stride
    return model


def build(numbers: Hierarchy, name: str, image_size: tuple[int, int], in_chans: int, num_classes: int, drop_path: float) -> nn.Module:
    """timm's model called `name` with these numbers; `num_classes` 0 leaves out the head."""
    kwargs: dict[str, Any] = {"depths": numbers.depths}
    if name.startswith("convnext"):
        kwargs["dims"] = numbers.dims
    else:
        kwargs |= {"embed_dims": numbers.dims, "num_heads": numbers.heads}
    if name.startswith("twins"):
        kwargs |= {"patch_size": numbers.patch_size, "img_size": image_size}
    model = timm.create_model(name, in_chans=in_chans, num_classes=num_classes, drop_path_rate=drop_path, **kwargs)
    if numbers.patch_size != 4 and not name.startswith("twins"):
        _set_stem_stride(model, numbers.patch_size)
    return adopt(model, numbers.stride, num_classes)


def _set_stem_stride(model: nn.Module, stride: int) -> None:
    """A stem that halves the image, or keeps its size, instead of quartering it, with the published weights' shapes: its patches overlap."""
    projection = model.stem[0] if hasattr(model, "stem") else model.patch_embed.proj
    projection.stride = (stride, stride)
    projection.padding = tuple((side - 1) // 2 for side in projection.kernel_size)
    if stride == 1 and projection.kernel_size[0] % 2 == 0:
        projection.__class__ = _EvenConv2d


class _EvenConv2d(nn.Conv2d):
    """A convolution of even kernel and stride 1 that keeps the image's size, by one more pixel at its right and lower edge."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(images, (0, 1, 0, 1)))


def build_any(name: str, image_size: tuple[int, int], in_chans: int, num_classes: int, drop_path: float, **kwargs: Any) -> nn.Module:
    """Any other model of timm that offers features: its own keyword arguments.

    Raises UserError when timm has no such model, the model does not take an argument, or timm does not say its feature map's stride.
    """
    if not timm.is_model(name):
        raise UserError(f"backbone {name!r} exists neither here nor in timm {timm.__version__}")
    model = _create(name, {**kwargs, "in_chans": in_chans, "num_classes": num_classes, "drop_path_rate": drop_path, "img_size": image_size})
    info = getattr(model, "feature_info", None)
    if not info:
        raise UserError(f"backbone {name!r}: timm does not state its features, so it cannot be pre-trained here")
    last = info[-1] if isinstance(info, list) else info.get_dicts()[-1]
    return adopt(model, int(last["reduction"]), num_classes, OtherFeatureMap)


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    """timm's model called `name`, without the image size or the zero drop path that some models do not take."""
    while True:
        try:
            return timm.create_model(name, **arguments)
        except TypeError as error:
            refused = _REFUSED.search(str(error))
            if refused is None or refused[1] not in arguments:
                raise
            if refused[1] == "drop_path_rate" and arguments["drop_path_rate"]:
                raise UserError(f"backbone {name!r}: drop_path {arguments['drop_path_rate']} must be 0, for it cannot drop paths") from error
            if refused[1] not in ("img_size", "drop_path_rate"):
                raise UserError(f"backbone {name!r}: argument {refused[1]!r} is none that timm lets this model take") from error
            arguments = {key: value for key, value in arguments.items() if key != refused[1]}
