"""A new paper is a folder: its files are made, its runs load, and nothing else lists it."""

import shutil

import nbformat
import pytest
from project import ROOT, write_params

from replicate.config import load
from replicate.errors import UserError
from replicate.pipeline import stages
from replicate.pipeline.new_paper import make
from replicate.report import notebook


@pytest.fixture
def root(tmp_path):
    shutil.copytree(ROOT / "papers", tmp_path / "papers")
    return tmp_path


def test_a_new_papers_runs_load_and_become_stages(root):
    written = make("newest", "The Newest Paper", root)
    assert all(path.exists() for path in written)
    params = load(write_params(root))
    assert params.papers["newest"] == "The Newest Paper"
    assert params.findings["newest"] == params.findings["mae"]
    assert params.run("newest_base_ft").pretrain == "newest_base"
    found = stages.stages(params)
    assert (
        "newest" in found["papers"]
        and found["evaluate"]["newest_base_ft"]["upstream"] == "newest/newest_base"
    )


def test_its_notebook_takes_the_pipelines_parameters(root):
    from replicate.report.notebook import parameters

    make("newest", "The Newest Paper", root)
    book = nbformat.read(root / "notebooks" / "newest.ipynb", as_version=4)
    nbformat.validate(book)
    assert set(parameters(book)) == {"budget", "paper", "scope"}


def test_its_notebook_runs_before_a_number_is_copied(root, monkeypatch):
    """Every cell, as `dvc repro notebook@newest` would run them, with nothing trained."""
    shutil.copytree(ROOT / "replicate", root / "replicate", ignore=shutil.ignore_patterns("__pycache__"))
    make("newest", "The Newest Paper", root)
    write_params(root)
    for name in ("measured", "benchmarks"):
        (root / name).symlink_to(ROOT / name)
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(root))
    assert notebook.execute("newest", "smoke").exists()


@pytest.mark.parametrize(
    ("key", "words"), [("../x", "cannot be a paper's key"), ("two words", "cannot be"), ("mae", "exists")]
)
def test_keys_that_cannot_be(root, key, words):
    with pytest.raises(UserError, match=words):
        make(key, "Title", root)
