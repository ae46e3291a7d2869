"""torchvision and timm import beside any torch build, and a matching torchvision is left alone."""

import importlib.util
import subprocess
import sys

import pytest

from replicate import compat


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_and_timm_import_in_this_environment():
    printed = python(
        "import replicate.compat, torchvision, timm\n"
        "print(timm.create_model('vit_tiny_patch16_224').embed_dim)"
    )
    assert printed == "192"


def test_operators_that_load_keep_their_own_schemas(monkeypatch):
    monkeypatch.setattr(compat, "_library", None)
    monkeypatch.setattr(compat.torch.ops, "load_library", lambda path: None)
    compat._declare_missing_schemas()
    assert compat._library is None


def test_schemas_are_declared_only_for_operators_that_do_not_load():
    printed = python(
        "import torch\n"
        "def fail(path): raise OSError('built for another torch')\n"
        "torch.ops.load_library = fail\n"
        "import replicate.compat\n"
        "print(torch.ops.torchvision.nms.default._schema)"
    )
    assert printed == "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def test_declaring_twice_does_nothing_more(monkeypatch):
    held = object()
    monkeypatch.setattr(compat, "_library", held)
    compat._declare_missing_schemas()
    assert compat._library is held


@pytest.mark.parametrize("spec", [None, importlib.util.spec_from_loader("torchvision", loader=None)])
def test_without_torchvision_there_is_nothing_to_declare(monkeypatch, spec):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: spec)
    assert compat._operators_load()
