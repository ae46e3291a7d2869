"""DailyMAE's runs: stages, the online probe, the image folder, recompressed validation images."""

from __future__ import annotations

import io
import math
import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from replicate.config import Encoding, Params, ScoreRun, load
from replicate.config.stages import expand
from replicate.errors import UserError
from replicate.loaders import Augmentation, crop_decode, open_loader
from replicate.loaders.crops import center_boxes
from replicate.loaders.data import DataSettings, write
from replicate.loaders.decode import decode_image, resize_crop
from replicate.loaders.folder import StoredSource
from replicate.loaders.writer import WriteSettings
from replicate.models.weights import load_weights
from replicate.pipeline import launch
from replicate.report.results import read
from replicate.schedules.stages import view_at
from replicate.trainers import score
from replicate.trainers.context import weights_path
from replicate.trainers.online_probe import OnlineProbe
from replicate.trainers.score import recompressed


@pytest.fixture
def train(small_folder, small_params, monkeypatch):
    """Trains a run, and what it needs, at the smoke budget with one seed; returns its metrics."""
    monkeypatch.chdir(small_folder)

    def run(name: str, chosen: Params = small_params) -> dict[str, float]:
        for needed in with_upstream(chosen, name):
            dataset = chosen.run(needed).dataset
            if not chosen.data_folder(dataset).exists():
                launch.write_dataset(chosen, dataset)
            if needed == name or not chosen.results_folder(needed).exists():
                launch.launch(chosen, needed, ())
        return read(chosen.results_folder(name) / "metrics.json").per_seed[0]

    return run


def with_upstream(params: Params, name: str) -> list[str]:
    upstream = params.upstream_of(name)
    return [*(with_upstream(params, upstream) if upstream else []), name]


def test_a_palindrome_of_any_length():
    sizes = [stage["image_size"] for stage in expand({"schedule": "palindrome", "sizes": [224, 192, 160]})]
    assert sizes == [224, 192, 160, 192, 224]
    ends = [stage["until"] for stage in expand({"schedule": "palindrome", "sizes": [224, 192]})]
    assert ends == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "spiral", "sizes": [1]},
        {"sizes": [1]},
        {"schedule": "rising", "sizes": [1, 2], "ends": [0.2, 0.4]},
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match="stages"):
        expand(wrong)


def test_schemes_are_the_papers(small_params):
    """Table 10's stages; the authors change stage at epochs 200 and 400 of 800."""
    run = small_params.run("daily_s6")
    assert [
        (view_at(run, epoch).image_size, view_at(run, epoch).mask_ratio)
        for epoch in (0, 199, 200, 399, 400, 799)
    ] == [*[(224, 0.75)] * 2, *[(192, 0.75)] * 2, *[(224, 0.85)] * 2]
    thirds = small_params.run("daily_s2_thirds")
    assert [view_at(thirds, epoch).image_size for epoch in (0, 266, 267, 532, 533, 799)] == [
        160,
        160,
        192,
        192,
        224,
        224,
    ]


def test_the_online_probe_changes_nothing_but_its_own_numbers(train, small_folder, small_params):
    """A palindrome with the probe and one without have the same encoder and losses, bit for bit."""
    with_probe = train("daily_s5")
    assert 0 <= with_probe["probe_top1"] <= 100 and 0 <= with_probe["probe_train_top1"] <= 100
    folder = small_folder / small_params.results_folder("daily_s5")
    history = pd.read_csv(folder / "history.csv")
    assert {"probe_loss", "probe_train_top1", "probe_top1"} <= set(history.columns)
    kept = load_weights(weights_path(folder, 0))
    content = yaml.safe_load((small_folder / "params.yaml").read_text())
    content["runs"]["daily_s5"] = {"online_probe": False}
    (small_folder / "without.yaml").write_text(yaml.safe_dump(content))
    without = train("daily_s5", load(small_folder / "without.yaml"))
    assert "probe_top1" not in without and without["loss"] == with_probe["loss"]
    again = load_weights(weights_path(folder, 0))
    assert all(torch.equal(kept[key], again[key]) for key in kept)


class Encoder(torch.nn.Module):
    embed_dim = 4

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 4))

    def unmasked_features(self, images):
        return images.mean(dim=(2, 3)) @ self.weight


def noisy_images(count):
    """uint8 (count, 3, 8, 8) whose brightness tells their label, 0 or 1."""
    labels = torch.arange(count) % 2
    brightness = (60 + 120 * labels[:, None, None, None]).expand(count, 3, 8, 8).to(torch.uint8)
    return brightness + torch.randint(0, 60, (count, 3, 8, 8), dtype=torch.uint8), labels


def test_the_probe_learns_and_gives_the_encoder_no_gradient():
    torch.manual_seed(0)
    encoder = Encoder()
    probe, losses = OnlineProbe(encoder, 2), []
    images, labels = noisy_images(64)
    for _ in range(200):
        probe.see(images, labels)
        logs = probe.step()
        losses.append(float(logs["probe_loss"]))
    assert encoder.weight.grad is None and losses[-1] < 0.75 * losses[0]
    assert float(logs["probe_train_top1"]) == 100 and probe.accuracy([(images, labels, None)]) == {
        "probe_top1": 100
    }


def test_the_probe_is_that_of_the_authors_code_over_200_steps():
    """In plain torch: BatchNorm1d and Linear at their defaults, cross-entropy, Adam at 1e-3, whole batches.

    The probe sees each batch in two micro-batches.
    """
    torch.manual_seed(0)
    encoder = Encoder()
    torch.manual_seed(1)
    probe = OnlineProbe(encoder, 2)
    torch.manual_seed(1)
    plain = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for step in range(200):
        images, labels = noisy_images(32)
        pixels = (images.float() / 255 - mean[:, None, None]) / std[:, None, None]
        loss = torch.nn.functional.cross_entropy(plain(encoder.unmasked_features(pixels).detach()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for part in (slice(0, 12), slice(12, 32)):
            probe.see(images[part], labels[part])
        assert float(probe.step()["probe_loss"]) == pytest.approx(loss.item(), rel=1e-6), step
    for ours, theirs in zip(probe.head.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_probe_resumes_with_its_moments():
    torch.manual_seed(0)
    encoder = Encoder()
    first, second = OnlineProbe(encoder, 2), OnlineProbe(encoder, 2)
    images, labels = noisy_images(32)
    first.see(images, labels)
    first.step()
    for name, part in second.state().items():
        part.load_state_dict(deepcopy(first.state()[name].state_dict()))
    for probe in (first, second):
        probe.see(images, labels)
    assert first.step() == second.step()
    assert all(
        torch.equal(a, b) for a, b in zip(first.head.parameters(), second.head.parameters(), strict=True)
    )


def test_the_online_probe_leaves_batch_normalisation_alone():
    """Whole images must not enter the running statistics that masked images make."""
    from replicate.models.backbones import build_encoder
    from replicate.models.mim import MIM

    torch.manual_seed(0)
    numbers = {"dims": (8, 16, 16, 32), "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 2)}
    model = MIM(
        build_encoder("cmt_tiny", 32, **numbers), 12, decoder_embed_dim=32, mask_unit=32, mask_ratio=0.5
    ).train()
    probe = OnlineProbe(model, 3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    probe.see(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 0]))
    probe.step()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert all(module.training for module in (*model.modules(), *probe.head.modules()))


def test_fine_tuning_in_stages_reports_their_ends(train):
    result = train("daily_ft_s3")
    assert {"top1_at_30", "top1_at_60"} <= set(result) and math.isfinite(result["loss"])


def test_recompressed_images_are_scored_by_either_codec(train):
    original, pillow, turbo = (
        train(name) for name in ("daily_val_original", "daily_val_pil_256_90", "daily_val_256_90")
    )
    for result in (original, pillow, turbo):
        assert 0 <= result["top1"] <= result["top5"] <= 100
    assert (
        pillow["bytes_per_image"] < original["bytes_per_image"]
        and turbo["bytes_per_image"] < original["bytes_per_image"]
    )


@pytest.mark.skipif(not crop_decode.available(), reason="the fast DCT needs the C library")
def test_the_dct_alone_can_be_chosen(small_params):
    """The same JPEG: the accurate DCT gives what Pillow decodes, the fast one differs a little."""
    smooth = np.cumsum(np.random.default_rng(0).normal(size=(90, 70, 3)), axis=1)
    pixels = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    run = small_params.run("daily_val_256_90_accurate").model_copy(
        update={"image_size": 32, "encoding": Encoding(resolution=64, quality=90)}
    )
    assert run.model_copy(update={"dct": None, "encoding": None}) == small_params.run(
        "daily_val_256_90"
    ).model_copy(update={"image_size": 32, "encoding": None})
    crops = {
        dct: score.crop(pixels, "a photograph", run.model_copy(update={"dct": dct}))[0].astype(int)
        for dct in (None, "fast", "accurate")
    }
    jpeg = recompressed(pixels, run.encoding, "turbo")
    decoded = decode_image(jpeg, "a photograph")
    pillow = resize_crop(
        decoded, center_boxes(np.array([decoded.shape[:2]]))[0], False, 32, run.interpolation
    )
    assert (crops[None] == crops["fast"]).all() and (crops["accurate"] == pillow).all()
    assert 0 < np.abs(crops["fast"] - crops["accurate"]).mean() < 1


@pytest.mark.parametrize("stated", [{"codec": "pillow", "encoding": {"quality": 90}}, {"codec": "turbo"}])
def test_a_dct_that_nothing_reads_is_refused(small_params, stated):
    run = small_params.run("daily_val_original").model_dump(exclude={"encoding", "codec", "dct"})
    with pytest.raises(ValueError, match="dct needs codec turbo and an encoding"):
        ScoreRun(**run, **stated, dct="accurate")


@pytest.mark.parametrize("codec", ["pillow", "turbo"])
def test_recompression_keeps_to_cap_and_quality(codec):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 60, 3), dtype=np.uint8)
    sizes = {q: recompressed(pixels, Encoding(resolution=50, quality=q), codec) for q in (90, 95, 100)}
    assert len(sizes[90]) < len(sizes[95]) < len(sizes[100])
    with Image.open(io.BytesIO(sizes[95])) as image:
        assert image.size == (30, 50)


def test_writing_says_what_became_of_the_images(small_folder, small_params, monkeypatch, capsys):
    monkeypatch.chdir(small_folder)
    launch.write_dataset(small_params, "daily_256_95")
    images = small_params.dataset("daily_256_95").train_images
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0].rpartition("/")[2] for line in told] == ["train.beton", "val.beton"]
    assert told[0].endswith(
        f"{images} images: 0 kept their bytes, {images} were encoded by the writer, "
        f"{images} were made smaller"
    )
    assert launch.what_was_done(5, {"kept": 3, "transcoded": 0, "encoded": 2, "raw": 0, "resized": 0}) == (
        "5 images: 3 kept their bytes, 2 were encoded by the writer"
    )


def test_a_folder_of_made_up_photos_reads_their_stored_files(tmp_path):
    """Pillow decodes the JPEGs of the .beton to the same pixels, instead of drawing each image anew."""
    write(
        DataSettings(image_size=48, train_images=24, val_images=12, train=WriteSettings(quality=90)),
        tmp_path,
        workers=1,
        progress=False,
    )
    options = {"batch_size": 8, "image_size": 24, "augmentation": Augmentation(), "seed": 0, "train": True}
    with (
        open_loader("beton", tmp_path / "train.beton", **options) as ours,
        open_loader("folder", tmp_path / "train.beton", **options) as plain,
    ):
        assert isinstance(plain.source, StoredSource)
        for mine, theirs in zip(ours.epoch(0), plain.epoch(0), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_a_folder_of_made_up_photos_leaves_no_file_open(tmp_path, mode):
    write(
        DataSettings(image_size=16, train_images=12, val_images=12, train=WriteSettings(mode=mode)),
        tmp_path,
        workers=1,
        progress=False,
    )
    options = {"image_size": 8, "augmentation": Augmentation(), "seed": 0, "train": True}
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with open_loader("folder", tmp_path / "train.beton", batch_size=4, **options):
            pass
        with pytest.raises(UserError, match="fewer than one batch of 99"):
            open_loader("folder", tmp_path / "train.beton", batch_size=99, **options)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["daily_folder_s4_ft", "daily_s1_thirds_ft", "daily_pre_256_95_ft", "daily_ft_160", "daily_256_95_ft"],
)
def test_other_kinds_of_runs(train, name):
    assert math.isfinite(train(name)["loss"])
