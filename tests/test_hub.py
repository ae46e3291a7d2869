"""Weights and data sets by name, from a hub that runs on this machine; publishing, without leaving it."""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from project import ROOT, write_params
from web import serving

from replicate import load_model, reconstruct
from replicate.cli import main
from replicate.config import load
from replicate.errors import UserError
from replicate.explore import reconstruction, runs
from replicate.fetch import datasets, hub
from replicate.fetch.weights import is_weights, weights_file
from replicate.loaders.sources import open_folder
from replicate.models.huggingface import save_pretrained
from replicate.models.mae import MAE
from replicate.models.weights import load_released, load_weights, save_weights

SIZES = {"image_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
DECODER = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 1}
COMMIT = "0" * 40


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A hub on this machine, and none other."""
    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        yield found


def serve(site, path: str, content: bytes) -> None:
    site.files[path] = content
    site.headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}


@pytest.fixture
def model() -> MAE:
    torch.manual_seed(0)
    return MAE(**SIZES, **DECODER).eval()


def test_names_of_weights_are_told_from_names_of_runs():
    for name in (
        "timm:vit_base_patch16_224.mae",
        "hf:a/b",
        "https://x/mae.pth",
        "mae.pth",
        "a/b.safetensors",
    ):
        assert is_weights(name)
    assert not is_weights("light_75") and not is_weights("mae_base")


def test_a_hub_model_is_loaded_strictly_with_its_decoder(here, site, model):
    """The loss equals that of the same weights in the reference's format."""
    save_pretrained(model, here / "theirs")
    serve(
        site, "/owner/small/resolve/main/model.safetensors", (here / "theirs/model.safetensors").read_bytes()
    )
    save_weights(model.state_dict(), here / "own.safetensors")
    theirs, own = load_model("hf:owner/small"), load_model("own.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), own.parameters(), strict=True))
    assert reconstruct(theirs, "coffee").loss == reconstruct(own, "coffee").loss
    asked = len(site.asked)
    weights_file("hf:owner/small")
    assert len(site.asked) == asked, "the file comes once"


def test_an_older_repository_has_a_pickle_of_tensors(here, site, model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    serve(site, "/owner/old/resolve/main/pytorch_model.bin", buffer.getvalue())
    assert weights_file("hf:owner/old").name == "pytorch_model.bin"


def test_timms_encoder_starts_a_run_and_its_decoder_stays_new(here, site, model):
    encoder = {k: v for k, v in model.state_dict().items() if not k.startswith(("decoder", "mask_token"))}
    save_weights(encoder, here / "timm.safetensors")
    path = "/timm/vit_base_patch16_224.mae/resolve/main/model.safetensors"
    serve(site, path, (here / "timm.safetensors").read_bytes())
    found = weights_file("timm:vit_base_patch16_224.mae")
    torch.manual_seed(1)
    fresh = MAE(**SIZES, **DECODER)
    before = fresh.decoder_embed.weight.clone()
    assert load_released(fresh, found) is False
    assert torch.equal(fresh.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    assert torch.equal(fresh.decoder_embed.weight, before)
    with pytest.raises(UserError, match="holds the encoder only"):
        load_model("timm:vit_base_patch16_224.mae")


def test_an_address_is_downloaded_once(here, site, model):
    save_weights(model.state_dict(), here / "own.safetensors")
    site.files["/mae.safetensors"] = (here / "own.safetensors").read_bytes()
    found = load_model(f"{site.url}/mae.safetensors").weights
    assert found.parent.parent == Path("data/downloads") and found.name == "mae.safetensors"
    assert weights_file(f"{site.url}/mae.safetensors") == found
    weights_file(f"{site.url}/mae.safetensors")
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:vit_base_patch16_224.maee", "timm has no such pre-trained model"),
        ("hf:owner", "expected hf:OWNER/NAME"),
        ("hf:owner/none", "hf:owner/none, pytorch_model.bin: .*NotFound"),
        ("https://host/page.html", "the address must end in .pth"),
        ("weights.txt", "name them as timm:MODEL.TAG, hf:OWNER/NAME"),
    ],
)
def test_weights_that_are_not_there_are_named_in_a_line(here, site, name, words):
    with pytest.raises(UserError, match=words) as error:
        weights_file(name)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(here, model):
    save_weights(MAE(**SIZES | {"depth": 3}, **DECODER).state_dict(), here / "deep.safetensors")
    save_weights(MAE(**SIZES, **DECODER | {"decoder_embed_dim": 64}).state_dict(), here / "wide.safetensors")
    deeper = MAE(**SIZES | {"depth": 3}, **DECODER)
    save_weights(model.state_dict(), here / "own.safetensors")
    with pytest.raises(UserError, match="own.safetensors: does not fit the run's model: blocks.2"):
        load_released(deeper, here / "own.safetensors")
    with pytest.raises(
        UserError, match=r"wide.safetensors: does not fit .* mask_token is .* where the model has"
    ):
        load_released(model, here / "wide.safetensors")


def test_released_weights_join_the_notebooks_choices(here, model, monkeypatch):
    monkeypatch.setattr(runs, "_shown_too", [])
    save_weights(model.state_dict(), here / "own.safetensors")
    reconstruction.show_too("own.safetensors")
    chosen = runs.finished(here)[0]
    assert chosen.label == "own.safetensors"
    assert reconstruction.draw(chosen, 0.5, "coffee", 0).axes


# A run that starts from weights by name

VIT = {
    "backbone": "vit",
    "backbone_kwargs": {k: SIZES[k] for k in ("embed_dim", "depth", "num_heads", "patch_size")},
}
TINY = VIT | {"image_size": 32, "decoder_depth": 1, "decoder_width": 32}


def start_from(folder: Path, weights: str, **more) -> Path:
    """A project whose `light_75_llrd_80` starts from weights; `light_75` is the model that they are of."""
    change = {"pretrain": {"weights": weights} | more, "image_size": 32}
    return write_params(folder, runs={"light_75": TINY, "light_75_llrd_80": change})


def test_an_evaluation_starts_from_weights_by_name(here, model):
    params = load(start_from(here, "own.safetensors"))
    name = params.run("light_75_llrd_80").pretrain
    assert name == "light_75_llrd_80_start" and params.upstream_of(name) is None
    stated, seen = params.run(name), params.resolve(name)
    assert (stated.weights, stated.epochs, stated.backbone_kwargs) == (
        "own.safetensors",
        0,
        VIT["backbone_kwargs"],
    )
    assert seen.image_size == params.resolve("light_75_llrd_80").image_size == 32, (
        "a lens leaves the model alone"
    )
    assert seen.backbone_kwargs == VIT["backbone_kwargs"] and seen.batch_size < stated.batch_size
    assert params.resolve("light_75").image_size < 32


def test_fine_tuning_trains_from_the_weights(here, model):
    save_weights(model.state_dict(), here / "own.safetensors")
    start_from(here, "own.safetensors")
    assert main(["data", "write"]) == 0
    assert main(["pretrain", "light_75_llrd_80_start"]) == 0
    folder = here / "results/smoke/efficient_learners/light_75_llrd_80_start"
    handed_on = load_weights(folder / "weights/seed0.safetensors")
    assert all(torch.equal(handed_on[name], tensor) for name, tensor in model.state_dict().items())
    assert json.loads((folder / "metrics.json").read_text())["results"]["val_loss"]["mean"] > 0
    assert main(["evaluate", "light_75_llrd_80"]) == 0
    assert (here / "results/smoke/efficient_learners/light_75_llrd_80/metrics.json").exists()


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (
            {"weights": "a.pth", "model": "lite_75"},
            "model: 'lite_75' is no pre-training; did you mean light_75",
        ),
        ({"model": "light_75"}, "takes weights and model, such as"),
        ({"weights": "a.pth", "seed": 1}, "takes weights and model, such as"),
    ],
)
def test_a_start_that_cannot_be_is_named(here, start, words):
    path = write_params(here, runs={"light_75_llrd_80": {"pretrain": start}})
    with pytest.raises(UserError, match=re.escape(words)):
        load(path)


# Cards


@pytest.fixture
def finished(here):
    save_weights(MAE(**SIZES, **DECODER).state_dict(), here / "own.safetensors")
    start_from(here, "own.safetensors")
    folder = here / "results/smoke/efficient_learners/light_75"
    save_weights(MAE(**SIZES, **DECODER).state_dict(), folder / "weights/seed0.safetensors")
    params = load("params.yaml")
    metrics = {
        "results": {"seeds": [0], "per_seed": [{"val_loss": 0.75, "parameters": 1234.0}]},
        "run": params.run("light_75").model_dump(mode="json"),
        "resolved": params.resolve("light_75").model_dump(mode="json"),
        "provenance": {
            "git": {"revision": "f" * 40, "dirty": True},
            "device": "cpu",
            "manifest_sha256": "ab12",
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_a_card_states_results_budget_command_licence_and_claims(finished, here):
    shutil.copytree(ROOT / "tables/brief", "tables/smoke", ignore=shutil.ignore_patterns("*.png", "full"))
    assert main(["weights", "card", "light_75", "out"]) == 0
    text = Path("out/README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n")
    for words in ("| val_loss", "0.75", "budget `smoke`", "python -m replicate pretrain light_75", "f" * 40):
        assert words in text
    assert "with changes that were not committed" in text and "| mask_ratio" in text
    assert "Claims that this run bears on" in text
    assert Path("out/model.safetensors").read_bytes() == (finished / "weights/seed0.safetensors").read_bytes()
    assert json.loads(Path("out/run.json").read_text())["run"]["mask_ratio"] == 0.75


def test_a_card_needs_a_finished_run_with_weights(finished, here, capsys):
    assert main(["weights", "card", "light_90", "out"]) == 2
    assert "run light_90 has not finished" in capsys.readouterr().err
    assert main(["weights", "card", "light_75", "out", "--seed", "7"]) == 2
    assert "kept no weights of seed 7" in capsys.readouterr().err


def test_weights_that_start_from_others_need_their_licence(finished, here, capsys):
    folder = finished.with_name("light_75_llrd_80_start")
    save_weights(MAE(**SIZES, **DECODER).state_dict(), folder / "weights/seed0.safetensors")
    (folder / "metrics.json").write_text((finished / "metrics.json").read_text())
    assert main(["weights", "card", "light_75_llrd_80_start", "out"]) == 2
    assert "starts from own.safetensors: name the licence" in capsys.readouterr().err
    assert main(["weights", "card", "light_75_llrd_80_start", "out", "--licence", "cc-by-nc-4.0"]) == 0
    assert "license: cc-by-nc-4.0" in Path("out/README.md").read_text()


def test_pushing_uploads_the_cards_folder_and_nothing_else(finished, here, monkeypatch, capsys):
    """By a stand-in for the hub's interface: no test publishes anything."""
    calls = []

    class Api:
        def create_repo(self, repository, **options):
            calls.append(("create", repository, options["private"]))

        def upload_folder(self, repo_id, folder_path):
            calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return "https://hub/owner/name"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert main(["weights", "push", "light_75", "owner/name", "--private"]) == 0
    files = ["README.md", "model.safetensors", "run.json"]
    assert calls == [("create", "owner/name", True), ("upload", "owner/name", files)]
    assert "https://hub/owner/name" in capsys.readouterr().out


def test_a_refusal_of_the_hub_is_one_line(monkeypatch, tmp_path):
    class Api:
        def create_repo(self, *_, **__):
            raise PermissionError("401 Client Error\nlog in first")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(UserError, match="^hf:owner/name: PermissionError: 401 Client Error log in first$"):
        hub.publish(tmp_path, "owner/name")


# Data sets of the hub


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def snapshot(monkeypatch, fill) -> None:
    """A stand-in for the download, which the hub's own library tests."""

    def download(repository, repo_type, revision, local_dir):
        assert (repository, repo_type, revision) == ("owner/name", "dataset", None)
        fill(Path(local_dir))
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def test_a_hub_data_set_of_class_folders(here, monkeypatch):
    def fill(folder):
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                (folder / split / name).mkdir(parents=True)
                (folder / split / name / "1.png").write_bytes(png(1))

    snapshot(monkeypatch, fill)
    train, val = open_folder(datasets.fetch("hf://datasets/owner/name"))
    assert train.class_names == ["cat", "dog"] and len(train) == len(val) == 2
    assert Path("data/hf/owner--name/val/dog/1.png").exists()


def test_a_hub_data_set_of_parquet_files(here, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {
        "img": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["a/../cat, tom", "dog"]},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}

    def fill(folder):
        (folder / "data").mkdir()
        for split in ("train", "validation"):
            rows = {"img": [{"bytes": png(n), "path": None} for n in range(4)], "label": [0, 1, 1, -1]}
            table = pyarrow.table(rows).replace_schema_metadata(metadata)
            parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")

    snapshot(monkeypatch, fill)
    train, val = open_folder(datasets.fetch("hf://datasets/owner/name"))
    assert (
        train.class_names == ["a_.._cat__tom", "dog"] and train.labels.tolist() == [0, 1, 1] and len(val) == 3
    )


def test_a_hub_data_set_of_another_form_is_named(here, monkeypatch):
    pytest.importorskip("pyarrow")
    snapshot(monkeypatch, lambda folder: (folder / "images.zip").write_bytes(b""))
    with pytest.raises(UserError, match="hf:owner/name: no folder train/ and no Parquet file"):
        datasets.fetch("hf://datasets/owner/name")
    with pytest.raises(UserError, match="expected hf://datasets/OWNER/NAME"):
        datasets.fetch("hf://datasets/owner")
    assert not Path("data/hf/owner--name").exists()
