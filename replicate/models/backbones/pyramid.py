"""timm's hierarchies for images of any size (Twins-SVT, PVTv2, ConvNeXt), and any other timm model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from replicate.config.hierarchies import Hierarchy
from replicate.errors import UserError
from replicate.models.features import FeatureMap, Size
from replicate.models.resample import trained_grid
from replicate.models.resized import Resized, replace_data
from replicate.patches import grid_of, pair

_TABLE = "relative_position_bias_table"
_REFUSED = re.compile(r"(?:unexpected|multiple values for) keyword argument(.*)")


class OtherFeatureMap(FeatureMap):
    """Mixed into any timm model: position tables follow the resolution as far as timm supports it."""

    def set_input_size(self, img_size: int | Size) -> Resized:
        """Take images of another size; resample position embeddings and relative position tables in place.

        Raises UserError when the model was built for one size, or the size does not fit its patches.
        """
        inherited = getattr(super(FeatureMap, self), "set_input_size", None)
        if inherited is None:
            if self.default_cfg.get("fixed_input_size"):
                raise _unusable(self._name, "it takes images of one size, so image_size cannot change")
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
            # timm made a new parameter; keep the one that the optimiser holds.
            setattr(self.get_submodule(owner), leaf, before[name])
            replace_data(before[name], resample, resized)
        return resized

    def fit_state(
        self, state: dict[str, Tensor], trained_at: Size | None = None, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Position tables of another image size, resampled to this model's; equal shapes stay as they are."""
        fitted, old_grid = dict(state), trained_at and grid_of(trained_at, self.stride)
        for name, parameter in self.named_parameters():
            differs = name in state and state[name].shape != parameter.shape
            if differs and name.endswith(("pos_embed", _TABLE)):
                fitted[name] = self._resampler(name, parameter, old_grid, antialias)(state[name])
        return fitted

    @property
    def _name(self) -> str:
        return self.default_cfg["architecture"]

    def _grid(self) -> Size | None:
        return getattr(getattr(self, "patch_embed", None), "grid_size", None)

    def _resampler(
        self, name: str, new: nn.Parameter, old_grid: Size | None = None, antialias: bool = True
    ) -> Callable[[Tensor], Tensor]:
        """What resamples a tensor of another resolution to the shape of the parameter `new`."""
        owner, _, leaf = name.rpartition(".")
        grid = self._grid()
        if leaf == _TABLE and new.ndim == 2:
            window = self.get_submodule(owner).window_size
            return partial(_resized_table, window, tuple(new.shape))
        if name == "pos_embed" and new.ndim == 3 and grid is not None:
            prefix = new.shape[1] - grid[0] * grid[1]

            def resample(table: Tensor) -> Tensor:
                old = trained_grid(table.shape[1] - prefix, grid, old_grid)
                return resample_abs_pos_embed(table, list(grid), list(old), prefix, antialias=antialias)

            return resample
        raise _unusable(self._name, f"image_size cannot change, because {name} cannot be resampled")


@contextmanager
def _without_timms_warning() -> Iterator[None]:
    """timm warns of the indexing in its own resampling of relative position tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _resized_table(window: Size, shape: Size, table: Tensor) -> Tensor:
    with _without_timms_warning():
        return resize_rel_pos_bias_table(table, new_window_size=window, new_bias_shape=shape)


@lru_cache
def _with_feature_map(base: type[nn.Module], mixin: type[FeatureMap]) -> type[nn.Module]:
    return type(base.__name__, (mixin, base), {})


def adopt(model: nn.Module, num_classes: int, mixin: type[FeatureMap] = FeatureMap) -> nn.Module:
    """The same timm model with the methods of `mixin`; without classes its whole head goes."""
    if not num_classes and hasattr(model, "head"):
        model.head = nn.Identity()
    # Changing the class keeps the state dict's keys, which a wrapping module would prefix.
    model.__class__ = _with_feature_map(type(model), mixin)
    return model


def build(
    numbers: Hierarchy, name: str, image_size: Size, in_chans: int, num_classes: int, drop_path: float
) -> nn.Module:
    """timm's model called `name` with these numbers; `num_classes` 0 leaves out the head."""
    kwargs: dict[str, Any] = {"depths": numbers.depths}
    if name.startswith("convnext"):
        kwargs["dims"] = numbers.dims
    else:
        kwargs |= {"embed_dims": numbers.dims, "num_heads": numbers.heads}
    if name.startswith("twins"):
        kwargs |= {"patch_size": numbers.patch_size, "img_size": image_size}
    model = timm.create_model(
        name, in_chans=in_chans, num_classes=num_classes, drop_path_rate=drop_path, **kwargs
    )
    if numbers.patch_size != 4 and not name.startswith("twins"):
        _set_stem_stride(model, numbers.patch_size)
    model = adopt(model, num_classes)
    model.stride = numbers.stride
    return model


def _set_stem_stride(model: nn.Module, stride: int) -> None:
    """Let the stem halve or keep the image's size instead of quartering it.

    The patches then overlap, and the weights keep their published shapes.
    """
    projection = model.stem[0] if hasattr(model, "stem") else model.patch_embed.proj
    projection.stride = (stride, stride)
    projection.padding = tuple((side - 1) // 2 for side in projection.kernel_size)
    if stride == 1 and projection.kernel_size[0] % 2 == 0:
        projection.__class__ = _EvenConv2d


class _EvenConv2d(nn.Conv2d):
    """A convolution of even kernel and stride 1 that pads one pixel more at the right and lower edge."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(images, (0, 1, 0, 1)))


def build_any(
    name: str, image_size: Size, in_chans: int, num_classes: int, drop_path: float, **kwargs: Any
) -> nn.Module:
    """Any other timm model whose last features are one map or its tokens; kwargs are the model's own.

    A trial pass finds the features' stride and width. Raises UserError when timm has no such model, the model
    does not take an argument or the image size, or its features have another form.
    """
    if not timm.is_model(name):
        raise UserError(f"backbone {name!r} exists neither here nor in timm {timm.__version__}")
    arguments = {"in_chans": in_chans, "num_classes": num_classes, "img_size": image_size}
    arguments = {**kwargs, **arguments, "drop_path_rate": drop_path}
    model = adopt(_create(name, arguments), num_classes, OtherFeatureMap)
    width, model.stride = _probe(model, name, torch.zeros(1, in_chans, *image_size))
    if not num_classes:
        model.num_features = width  # some models state the width of a head that the features do not pass
    return model


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    """timm's model called `name`, without the image size or zero drop path where it takes none."""
    while True:
        try:
            return timm.create_model(name, **arguments)
        except TypeError as error:
            message = _REFUSED.search(str(error))
            named = re.findall(r"'(\w+)'", message[1]) if message else []
            refused = {key for key in named if key in arguments}
            if not refused:
                raise _unusable(name, f"timm cannot build it: {_reason(error)}") from error
            if "drop_path_rate" in refused and arguments["drop_path_rate"]:
                rate = arguments["drop_path_rate"]
                raise _unusable(name, f"drop_path {rate} must be 0, because it cannot drop paths") from error
            if foreign := sorted(refused - {"img_size", "drop_path_rate"}):
                raise _unusable(name, f"timm does not let this model take argument {foreign[0]!r}") from error
            arguments = {key: value for key, value in arguments.items() if key not in refused}
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
            raise _unusable(name, f"timm cannot build it: {_reason(error)}") from error


@torch.no_grad()
def _probe(model: nn.Module, name: str, images: Tensor) -> tuple[int, int]:
    """(width, stride) of the model's last features, by one pass of one blank image."""
    size, training = tuple(images.shape[-2:]), model.training
    given = f"an image of {size[0]}x{size[1]}"
    try:
        weight = next(model.parameters())
        features = model.eval().forward_features(images.to(weight.device, weight.dtype))
    except Exception as error:  # whatever a foreign model raises inside
        raise _unusable(name, f"a trial pass of {given} failed ({_reason(error)})") from error
    finally:
        model.train(training)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        form = f"{features.ndim}-D" if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise _unusable(name, f"its features are {form}, neither one map nor a sequence of tokens")
    if features.ndim == 3:
        width, count = features.shape[2], features.shape[1] - getattr(model, "num_prefix_tokens", 0)
        strides = [s for s in range(1, min(size) + 1) if size[0] % s == size[1] % s == 0]
        stride = next((s for s in strides if size[0] * size[1] == count * s * s), None)
        found = f"{count} tokens"
    else:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        height, columns, width = features.shape[1:] if last else (*features.shape[2:], features.shape[1])
        stride = size[0] // height
        stride = stride if size == (height * stride, columns * stride) else None
        found = f"a map of {height}x{columns}"
    if not stride:
        raise _unusable(name, f"{given} gives {found}, which is no whole stride; try another image_size")
    return width, stride


def _unusable(name: str, reason: str) -> UserError:
    return UserError(f"backbone {name!r}: {reason}")


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
