"""Weights by name: `timm:MODEL.TAG`, `hf:OWNER/NAME[@REVISION]`, an address, or a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from replicate.errors import UserError
from replicate.fetch import hub
from replicate.fetch.datasets import DOWNLOADS
from replicate.fetch.download import fetch_url, say
from replicate.names import closest

TIMM, HF, ADDRESS = "timm:", "hf:", ("http://", "https://")
SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".safetensors")
FORMS = "timm:MODEL.TAG, hf:OWNER/NAME, an address, or a file (.pth, .pt, .bin, .safetensors)"


def is_weights(name: str) -> bool:
    """Whether a text names weights, and not a run."""
    return name.startswith((TIMM, HF, *ADDRESS)) or Path(name).suffix in SUFFIXES


def weights_file(name: str | Path) -> Path:
    """The file of named weights, downloaded once. A file is returned as it is, whether it exists or not.

    Raises UserError that names the weights: unknown to timm, not on the hub, or out of reach.
    """
    text = str(name)
    if text.startswith(TIMM):
        return _of_hub(_timm_repository(text), text)
    if text.startswith(HF):
        return _of_hub(text.removeprefix(HF), text)
    if text.startswith(ADDRESS):
        place = hashlib.sha256(text.encode()).hexdigest()[:8]  # files of two addresses may share a name
        path = DOWNLOADS / place / text.partition("?")[0].rpartition("/")[2]
        if path.suffix not in SUFFIXES:
            raise UserError(f"{text}: the address must end in {', '.join(SUFFIXES)}")
        return path if path.exists() else fetch_url(text, path)
    if Path(text).suffix not in SUFFIXES:
        raise UserError(f"weights {text!r}: name them as {FORMS}")
    return Path(text)


def _timm_repository(text: str) -> str:
    """The hub's repository of a timm model with a tag, such as timm/vit_base_patch16_224.mae."""
    import timm

    name = text.removeprefix(TIMM)
    try:
        found = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # a model that is there, with a tag that is not
        found = None
    if found is None or not found.hf_hub_id:
        known = timm.list_models(pretrained=True)
        raise UserError(f"{text}: timm has no such pre-trained model{closest(name, known)}")
    return found.hf_hub_id if "/" in found.hf_hub_id else f"timm/{found.hf_hub_id}"


def _of_hub(text: str, name: str) -> Path:
    repository, _, revision = text.partition("@")
    if repository.count("/") != 1:
        raise UserError(f"{name}: expected {HF}OWNER/NAME, or {HF}OWNER/NAME@REVISION")
    say(f"{name}: from the hub's cache, or downloaded into it")
    try:
        return hub.hub_file(repository, "model.safetensors", revision or None)
    except UserError as error:
        if "EntryNotFound" not in str(error):
            raise
        return hub.hub_file(repository, "pytorch_model.bin", revision or None)
