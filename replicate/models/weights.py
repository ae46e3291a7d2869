"""Weights on disk: safetensors of ours, and the checkpoints that the reference implementation releases.

Foreign files are read as tensors and plain values only. A pickle that wants to run code is refused, never run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from replicate.errors import UserError
from replicate.models.huggingface import from_transformers, is_transformers

State = dict[str, Tensor]

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".bin", ".tar")
_CONTAINERS = ("model", "state_dict")
_WRAPPER = "module."
_NAMED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ENCODER = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
_DECODER = ("mask_token", "decoder_pos_embed", "decoder_embed", "decoder_norm", "decoder_pred")
_BLOCK = [f"{layer}.{kind}" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


def load_weights(path: str | Path) -> State:
    """The state dict in a file, on the CPU: safetensors, or a checkpoint of the reference's kind (`{"model":
    state_dict, ...}`).

    Raises UserError naming the file when it is missing, damaged, holds no state dict, or is a pickle with code in it.
    """
    path = Path(path)
    if path.suffix == SAFETENSORS:
        return load_safetensors(path)[0]
    return _state_in(_load_pickle(path), path)


def load_safetensors(path: str | Path) -> tuple[State, dict[str, str]]:
    """(state dict, metadata) of a safetensors file, on the CPU. Raises UserError when the file is missing or damaged."""
    path = _existing(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}): it may be truncated; fetch or make it again") from None


def save_weights(state: State, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict: safetensors, or the reference's `{"model": state_dict}` where the suffix is .pth or .pt.

    The file appears whole or not at all. Raises UserError for another suffix, or when it cannot be written (full disk).
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if path.suffix == SAFETENSORS:
        _write(path, lambda part: save_file(_unshared(tensors), part, metadata=metadata))
    elif path.suffix in PICKLES:
        _write(path, lambda part: torch.save({"model": tensors}, part))
    else:
        raise UserError(f"{path}: weights are written as {SAFETENSORS} or .pth; choose one of these suffixes")


def import_weights(source: str | Path, destination: str | Path, need_decoder: bool = False) -> None:
    """Read a released checkpoint of a masked autoencoder, check it, and write it as ours (safetensors by default).

    Understands the reference's names and those of transformers' ViTMAE. Raises UserError when the file is no masked
    autoencoder's, or when `need_decoder` and it holds the encoder alone.
    """
    state = load_weights(source)
    state = {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}
    if is_transformers(state):
        state = from_transformers(state)
    check_mae(state, str(source), need_decoder)
    save_weights(state, destination, {"format": "pt", "origin": Path(source).name})


def export_weights(source: str | Path, destination: str | Path, need_decoder: bool = False) -> None:
    """Write weights of ours for others: .pth in the reference's released format, or safetensors; checks as
    `import_weights`.
    """
    state = load_weights(source)
    check_mae(state, str(source), need_decoder)
    save_weights(state, destination, {"format": "pt", "origin": Path(source).name})


def has_decoder(state: State) -> bool:
    """True when a state dict brings any part of a decoder."""
    return any(name.startswith("decoder_") for name in state)


def check_mae(state: State, source: str, need_decoder: bool = False) -> None:
    """Raise UserError unless `state` is a complete masked autoencoder's encoder, with a complete decoder or none."""
    missing = next((name for name in _expected("", state) if name not in state), None)
    if missing:
        raise UserError(f"{source} is no masked autoencoder's checkpoint: {missing} is missing")
    if not has_decoder(state):
        if need_decoder:
            advice = "reconstruction needs a checkpoint that has the decoder"
            raise UserError(f"{source} holds the encoder only, as files named _pretrain_ do: {advice}")
        return
    missing = next((name for name in _expected("decoder_", state) if name not in state), None)
    if missing:
        raise UserError(f"{source} holds an incomplete decoder: {missing} is missing")
    if state["mask_token"].shape[-1] != state["decoder_pos_embed"].shape[-1]:
        raise UserError(f"{source} was trained with mask tokens in the encoder: the reference's format has no such model")


def sizes_of(state: State, source: str = "the checkpoint") -> dict[str, Any]:
    """What `MAE(**sizes)` needs to load this state dict strictly: read from the shapes, heads from the papers' models.

    Widths that the papers do not use are given heads of 64 (encoder) and 32 (decoder) channels. Raises UserError when
    the checkpoint has no decoder or its positions form no square.
    """
    check_mae(state, source, need_decoder=True)
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    if side * side + 1 != state["pos_embed"].shape[1]:
        raise UserError(f"{source} has {state['pos_embed'].shape[1] - 1} patch positions, which are no square grid")
    decoder_width = state["decoder_pos_embed"].shape[-1]
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": _depth("blocks.", state),
        "num_heads": _HEADS.get(width, max(1, width // 64)),
        "decoder_embed_dim": decoder_width,
        "decoder_depth": _depth("decoder_blocks.", state),
        "decoder_num_heads": max(1, decoder_width // 32),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "target_dim": state["decoder_pred.weight"].shape[0],
    }


def _expected(part: str, state: State) -> Iterator[str]:
    """Names that a complete encoder (part "") or decoder (part "decoder_") has; a fine-tuned encoder may have lost its
    norm.
    """
    if part:
        for name in _DECODER:
            yield from [name] if name in ("mask_token", "decoder_pos_embed") else [f"{name}.weight", f"{name}.bias"]
    else:
        yield from _ENCODER
        if "fc_norm.weight" not in state:
            yield from ("norm.weight", "norm.bias")
    for index in range(max(1, _depth(f"{part}blocks.", state))):
        yield from (f"{part}blocks.{index}.{leaf}" for leaf in _BLOCK)


def _depth(prefix: str, state: State) -> int:
    indices = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return 1 + max((int(index) for index in indices if index.isdigit()), default=-1)


def _load_pickle(path: Path) -> Any:
    try:
        with _namespace_allowed():
            return torch.load(_existing(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _NAMED_GLOBAL.search(str(error))
        if named is None:
            raise UserError(f"{path} is no readable checkpoint: it is damaged or of another kind") from None
        raise UserError(f"{path} holds pickled code ({named[1]}), which is never run: ask for a file with tensors only") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no readable checkpoint ({reason}): it may be truncated; fetch it again") from None


@contextlib.contextmanager
def _namespace_allowed() -> Iterator[None]:
    """Some official files carry their command line as a pickled argparse.Namespace, a bag of plain values."""
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    else:  # torch 2.4
        torch.serialization.add_safe_globals([argparse.Namespace])
        yield


def _state_in(content: Any, path: Path) -> State:
    if isinstance(content, dict):
        for key in _CONTAINERS:
            if isinstance(content.get(key), dict):
                content = content[key]
                break
        state = {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
        if state:
            return state
    raise UserError(f'{path} holds no weights: expected {{"model": state_dict}} or a state dict')


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    return path


def _unshared(tensors: State) -> State:
    """safetensors refuses tensors that share memory: later ones become copies."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen or tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        seen.add(pointer)
    return result


def _write(path: Path, write: Callable[[Path], None]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} could not be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
