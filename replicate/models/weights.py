"""Weights on disk: safetensors of ours, released checkpoints of the reference, and those of transformers.

Foreign files are read as tensors and plain values only. A pickle that would run code is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from replicate.config.backbones import VIT_SIZES
from replicate.errors import UserError
from replicate.files import atomic_write
from replicate.models.huggingface import from_transformers, is_transformers, save_pretrained
from replicate.models.loading import State, without_prefixes
from replicate.models.mae import MAE
from replicate.models.pos_embed import class_row_missing, sincos_grid

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".bin", ".tar")
_CONTAINERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "task",
    "module",
    "net",
    "model_ema",
    "state_dict_ema",
    "ema",
)
"""Keys under which checkpoints hold their state dict, the first that is there."""
_NAMED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ANCHORS = ("patch_embed.proj.weight", "vit.embeddings.cls_token", "embeddings.cls_token")
_CLASSIFIER = ("head.", "fc_norm.", "norm.")
"""Parts of fine-tuned checkpoints; `norm.` may be there or not."""
_UNSUPPORTED = (
    (r"reg_token|register", "register tokens"),
    (r"\.ls\d?\.|gamma|lambda_", "layer scale"),
    (r"rope|rel_pos|relative_position", "relative or rotary positions"),
)
_HEADS = {sizes["embed_dim"]: sizes["num_heads"] for sizes in VIT_SIZES.values()}


def load_weights(path: str | Path) -> State:
    """The state dict in a file, on the CPU: safetensors, or a pickle (`{"model": state_dict, ...}`).

    Raises UserError, naming the file, when it is missing or damaged, holds no state dict, or is a pickle with
    code.
    """
    path = Path(path)
    if path.suffix == SAFETENSORS:
        return load_safetensors(path)[0]
    return _state_in(_load_pickle(path), path)


def load_safetensors(path: str | Path) -> tuple[State, dict[str, str]]:
    """(state dict, metadata) of a safetensors file. Raises UserError when it is missing or damaged."""
    path = _existing(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no readable safetensors file ({error}); fetch or write it again") from None


def save_weights(state: State, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict: safetensors, or the reference's `{"model": state_dict}` for .pth and .pt.

    The file appears whole or not at all. Raises UserError for another suffix, or when it cannot be written.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if path.suffix == SAFETENSORS:
        atomic_write(path, lambda part: _save_safetensors(_unshared(tensors), part, metadata))
    elif path.suffix in PICKLES:
        atomic_write(path, lambda part: torch.save({"model": tensors}, part))
    else:
        raise UserError(f"{path}: weights are written as {SAFETENSORS} or .pth; choose one of these suffixes")


def _save_safetensors(tensors: State, path: Path, metadata: dict[str, str] | None) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def import_weights(source: str | Path, destination: str | Path, need_decoder: bool = False) -> None:
    """Read a checkpoint of a masked autoencoder, check it, and write it as ours (safetensors by default).

    Reads the reference's names and those of transformers' ViTMAE, behind any of `loading.PREFIXES`. Raises
    UserError when the file is no masked autoencoder's, or has no decoder although `need_decoder`.
    """
    state = read_released(source)
    check_mae(state, str(source), need_decoder)
    _refuse_nonfinite(state, str(source))
    save_weights(state, destination, {"format": "pt", "origin": Path(source).name})


def read_released(source: str | Path) -> State:
    """A checkpoint under the reference's names, whether it is the reference's, timm's or transformers'."""
    state = without_prefixes(load_weights(source), _ANCHORS)
    return from_transformers(state) if is_transformers(state) else state


def load_released(model: MAE, source: str | Path) -> bool:
    """Load a checkpoint into a masked autoencoder; returns whether it had the decoder too, which else stays
    new.

    Raises UserError, naming the first tensor, unless the checkpoint is this model's: nothing is resampled.
    """
    state = read_released(source)
    check_mae(state, str(source))
    decoder, wanted = has_decoder(state), model.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    for name, tensor in wanted.items():
        if name not in state and (decoder or not name.startswith(("decoder_", "mask_token"))):
            raise UserError(f"{source}: does not fit the run's model: {name} is missing")
        if name in state and state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, where the model has {tuple(tensor.shape)}"
            raise UserError(f"{source}: does not fit the run's model: {name} is {shapes}")
    model.load_state_dict(state, strict=False)
    return decoder


def export_weights(
    source: str | Path, destination: str | Path, need_decoder: bool = False, format: str = "reference"
) -> None:
    """Write weights of ours for others; checks as `import_weights` does.

    format  "reference": .pth in the reference's released format, or safetensors; "hf": a folder that
            transformers' `ViTMAEForPreTraining.from_pretrained` reads, which needs the decoder
    """
    state = load_weights(source)
    if format == "hf":
        model = MAE(**sizes_of(state, str(source)))
        if model.grid[0] != model.grid[1]:
            raise UserError(f"{source}: its images are rectangular; ViTMAE takes square ones only")
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        save_pretrained(model, destination)
        return
    check_mae(state, str(source), need_decoder)
    _refuse_nonfinite(state, str(source))
    save_weights(state, destination, {"format": "pt", "origin": Path(source).name})


def has_decoder(state: State) -> bool:
    """True when a state dict has any part of a decoder."""
    return any(name.startswith("decoder_") for name in state)


def check_mae(state: State, path: str, need_decoder: bool = False) -> None:
    """Raise UserError unless `state` holds a masked autoencoder: its encoder, and a decoder or none."""
    for pattern, what in _UNSUPPORTED:
        if found := next((name for name in state if re.search(pattern, name)), None):
            raise UserError(f"{path} is no masked autoencoder's checkpoint: it has {what} ({found})")
    anchors = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    if missing := next((name for name in anchors if name not in state), None):
        raise UserError(f"{path} is no masked autoencoder's checkpoint: {missing} is missing")
    if state["patch_embed.proj.weight"].ndim != 4 or state["pos_embed"].ndim != 3:
        raise UserError(f"{path} is no masked autoencoder's checkpoint: its embeddings have another form")
    if class_row_missing(state["pos_embed"]):
        raise UserError(f"{path}: pos_embed has a row for every patch, but none for the class token")
    decoder = has_decoder(state)
    if need_decoder and not decoder:
        advice = "reconstruction needs a checkpoint that has the decoder"
        raise UserError(f"{path} holds the encoder only, as files named _pretrain_ do: {advice}")
    _compare(state, _expected(state, decoder), path)


def _refuse_nonfinite(state: State, path: str) -> None:
    if broken := next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), None):
        raise UserError(f"{path}: {broken} has values that are NaN or infinite")


def _expected(state: State, decoder: bool) -> State:
    """The tensors, without memory, of the model that the shapes in `state` describe."""
    sizes = _encoder_sizes(state) | {"image_size": (state["patch_embed.proj.weight"].shape[-1],) * 2}
    with torch.device("meta"):
        expected = MAE(**sizes | (_decoder_sizes(state) if decoder else {})).state_dict()
    positions = {name: len(state["pos_embed"][0]) for name in ("pos_embed", "decoder_pos_embed")}
    for name, rows in positions.items():
        expected[name] = torch.empty(1, rows, expected[name].shape[2], device="meta")
    left_out = () if decoder else ("decoder_", "mask_token")
    return {name: tensor for name, tensor in expected.items() if not name.startswith(left_out)}


def _compare(state: State, expected: State, path: str) -> None:
    optional = _CLASSIFIER if "fc_norm.weight" in state else ()  # a fine-tuned encoder may have lost its norm
    for name, tensor in expected.items():
        if name not in state and not name.startswith(optional):
            in_decoder = name.startswith(("decoder_", "mask_token"))
            fault = "holds an incomplete decoder" if in_decoder else "is no masked autoencoder's checkpoint"
            raise UserError(f"{path} {fault}: {name} is missing")
        if name in state and state[name].shape != tensor.shape:
            if name == "mask_token":
                advice = "the reference's format has no such model"
                raise UserError(f"{path} was trained with mask tokens in the encoder: {advice}")
            given, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise UserError(f"{path}: {name} is {given}, where the other tensors imply {wanted}")
    for name in state:
        if name not in expected and not name.startswith((*_CLASSIFIER, "mask_token")):
            raise UserError(f"{path} is no masked autoencoder's checkpoint: {name} is unknown to the model")


def sizes_of(state: State, path: str = "the checkpoint") -> dict[str, Any]:
    """What `MAE(**sizes)` needs to load this state dict: from its shapes, heads from the papers' models.

    For widths that the papers do not use, heads are 64 (encoder) and 32 (decoder) channels wide. Raises
    UserError when the checkpoint has no decoder, or its learned positions form no square.
    """
    check_mae(state, path, need_decoder=True)
    patch, count = state["patch_embed.proj.weight"].shape[-1], state["pos_embed"].shape[1] - 1
    rows, columns = sincos_grid(state["pos_embed"]) or (round(count**0.5),) * 2
    if rows * columns != count:
        raise UserError(f"{path} has {count} patch positions, which are no square grid")
    return {"image_size": (rows * patch, columns * patch)} | _encoder_sizes(state) | _decoder_sizes(state)


def _encoder_sizes(state: State) -> dict[str, Any]:
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    return {
        "patch_size": patch,
        "embed_dim": width,
        "depth": _depth("blocks.", state),
        "num_heads": _HEADS.get(width) or _heads(width, 64),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }


def _decoder_sizes(state: State) -> dict[str, Any]:
    width = state["decoder_pos_embed"].shape[-1] if "decoder_pos_embed" in state else 512
    target = state.get("decoder_pred.weight", state.get("decoder_pred.bias"))
    return {
        "decoder_embed_dim": width,
        "decoder_depth": max(1, _depth("decoder_blocks.", state)),
        "decoder_num_heads": _heads(width, 32),
        "target_dim": None if target is None else len(target),
    }


def _heads(width: int, head_width: int) -> int:
    """The most heads of at least that width that divide a model's width."""
    return next(heads for heads in range(max(1, width // head_width), 0, -1) if width % heads == 0)


def _depth(prefix: str, state: State) -> int:
    indices = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return 1 + max((int(index) for index in indices if index.isdigit()), default=-1)


def _load_pickle(path: Path) -> Any:
    try:
        with _plain_values_allowed():
            return torch.load(_existing(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _NAMED_GLOBAL.search(str(error))
        if named is None:
            raise UserError(f"{path}: not a readable checkpoint; it is damaged or of another kind") from None
        advice = "ask for a file with tensors only"
        raise UserError(f"{path} holds pickled code ({named[1]}), which is never run: {advice}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: no readable checkpoint ({reason}); fetch or write it again") from None


@contextlib.contextmanager
def _plain_values_allowed() -> Iterator[None]:
    """Allow the plain values of official files: a command line (argparse.Namespace) and numpy's numbers."""
    functions = [np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]]
    old_names = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    allowed = [argparse.Namespace, np.dtype, np.ndarray, *dtypes, *functions, *old_names]
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals(allowed):
            yield
    else:  # torch 2.4 takes no (function, name) pairs
        torch.serialization.add_safe_globals([entry for entry in allowed if not isinstance(entry, tuple)])
        yield


def _state_in(content: Any, path: Path) -> State:
    """The state dict in a checkpoint's nested dictionaries. Raises UserError when there is none."""
    while isinstance(content, dict):
        inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            state = {
                n: tensor
                for n, tensor in content.items()
                if isinstance(n, str) and isinstance(tensor, Tensor)
            }
            if state:
                return state
            break
        content = inner
    raise UserError(f'{path} holds no weights: expected {{"model": state_dict}} or a state dict')


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    return path


def _unshared(tensors: State) -> State:
    """safetensors refuses tensors that share memory: copy the later ones."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        shares = pointer in seen or tensor.untyped_storage().nbytes() != tensor.nbytes
        result[name] = tensor.clone() if shares else tensor
        seen.add(pointer)
    return result
