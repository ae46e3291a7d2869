"""Loggers get an epoch's numbers and pictures, continue a resumed run, and change neither results nor
keys.
"""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from project import ENVIRONMENT, write_params

from replicate import loggers
from replicate.config import load
from replicate.errors import UserError
from replicate.loggers import Place, Sinks, open_sinks

KEY = "0123456789abcdef01234567"
PIXELS = np.full((8, 12, 3), 128, np.uint8)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_SILENT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def needs(package: str):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


class Recorder:
    """A sink that keeps what it gets, and fails when told to."""

    def __init__(self, place):
        self.place, self.values, self.images, self.closed, self.fails = place, [], [], False, False

    def log(self, values, step):
        if self.fails:
            raise ConnectionError("no route\nto host")
        self.values.append((step, values))

    def image(self, name, pixels, step):
        self.images.append((step, name, pixels.shape, pixels.dtype))

    def close(self):
        self.closed = True


@pytest.fixture
def recorders(monkeypatch):
    """Every sink that is opened under the name "tensorboard"."""
    opened = []

    def start(place):
        opened.append(Recorder(place))
        return opened[-1]

    module = types.SimpleNamespace(start=start)
    monkeypatch.setitem(sys.modules, "replicate.loggers.tensorboard", module)
    return opened


def train(folder: Path, machine: dict, epochs: int = 3) -> dict:
    """Train `light_75` at the smoke budget; returns its results."""
    from replicate.cli import main

    write_params(folder, machine=machine, budget={"pretrain_epochs": epochs / 100})
    if not Path("data/smoke/full/manifest.json").exists():
        assert main(["data", "write"]) == 0
    assert main(["pretrain", "light_75"]) == 0
    return json.loads((folder / "results/smoke/efficient_learners/light_75/metrics.json").read_text())[
        "results"
    ]


def test_a_run_logs_each_epoch_and_pictures_and_the_result_stays(here, recorders):
    plain = train(here, {})
    (before,) = [path.name for path in Path(".replicate/runs").iterdir()]
    again = train(here, {"loggers": ["tensorboard"], "log_images": 2})
    assert not recorders, "a finished seed is found under the same key, whatever the loggers"
    Path(".replicate/runs", before, "finished.json").unlink()
    logged = train(here, {"loggers": ["tensorboard"], "log_images": 2})
    assert [path.name for path in Path(".replicate/runs").iterdir()] == [before]
    for key in ("val_loss", "loss"):
        assert plain[key] == again[key] == logged[key]
    (sink,) = recorders
    steps = 128 // 32
    assert [step for step, _ in sink.values] == [steps, 2 * steps, 3 * steps] and sink.closed
    assert {"epoch", "loss", "lr", "images_per_second"} <= set(sink.values[-1][1])
    assert [(step, name) for step, name, *_ in sink.images] == [(8, "reconstruction"), (12, "reconstruction")]
    assert sink.images[0][2:] == ((4 * 32, 3 * 32, 3), np.uint8)
    assert (sink.place.run, sink.place.seed, sink.place.key) == ("light_75", 0, before)
    with open("results/smoke/efficient_learners/light_75/history.csv") as file:
        written = [float(row["loss"]) for row in csv.DictReader(file)]
    assert [values["loss"] for _, values in sink.values] == pytest.approx(written)


def test_a_logger_that_cannot_start_is_left_out_too(monkeypatch, capsys):
    """A server out of reach must not cost a run."""

    def start(place):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "replicate.loggers.mlflow", types.SimpleNamespace(start=start))
    with open_sinks(["mlflow"], Place("light_75", 0, "key", 0, {})) as sinks:
        sinks.log({"loss": 1}, 1)
    assert capsys.readouterr().err == "logger mlflow failed and is left out: no route to host\n"


def test_a_sink_that_fails_is_left_out_with_a_line_and_the_others_go_on(capsys):
    broken, whole = Recorder(None), Recorder(None)
    broken.fails = True
    sinks = Sinks({"wandb": broken, "mlflow": whole})
    sinks.log({"loss": 1}, 1)
    sinks.log({"loss": 2}, 2)
    assert [step for step, _ in whole.values] == [1, 2]
    assert capsys.readouterr().err == "logger wandb failed and is left out: no route to host\n"


@pytest.mark.parametrize("name", sorted(loggers.PACKAGES))
def test_a_missing_package_is_told_with_the_command_that_installs_it(here, monkeypatch, name):
    for module in [m for m in sys.modules if m.partition(".")[0] == loggers.PACKAGES[name]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, loggers.PACKAGES[name], None)
    wanted = rf'logger {name} needs a package: pip install "replicate\[{name}\]"'
    with pytest.raises(UserError, match=wanted), open_sinks([name], Place("run", 0, KEY)):
        pass


def test_an_unknown_logger_is_told_with_those_that_are(here):
    with pytest.raises(UserError, match="loggers.*'csv', 'dvclive', 'tensorboard', 'wandb' or 'mlflow'"):
        load(write_params(here, machine={"loggers": ["tensorbord"]}))


def test_without_a_logger_no_package_is_imported():
    code = "import sys, replicate.loggers; print({'wandb', 'mlflow', 'dvclive', 'tensorboard'}"
    code += " & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def two_sessions(name: str) -> Place:
    """Two epochs and a picture, then a resumed run with a third."""
    place = Place("light_75", 0, KEY, settings={"mask_ratio": 0.75, "backbone": "vit"})
    with open_sinks([name], place) as sinks:
        sinks.log({"loss": 3.0, "epoch": 0}, 4)
        sinks.log({"loss": 2.0, "epoch": 1}, 8)
        sinks.image("reconstruction", PIXELS, 8)
    with open_sinks([name], Place("light_75", 0, KEY, step=8)) as sinks:
        sinks.log({"loss": 1.0, "epoch": 2}, 12)
        assert sinks, "nothing failed"
    return place


@needs("tensorboard")
def test_tensorboard_has_one_run_with_curves_and_pictures(here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(two_sessions("tensorboard").folder("tensorboard")))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(4, 3.0), (8, 2.0), (12, 1.0)]
    (picture,) = found.Images("reconstruction")
    assert (picture.step, picture.width, picture.height) == (8, 12, 8)


@needs("dvclive")
def test_dvclive_has_one_run_with_curves_and_pictures(here):
    folder = two_sessions("dvclive").folder("dvclive")
    rows = list(csv.DictReader((folder / "plots/metrics/loss.tsv").open(), delimiter="\t"))
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == [(4, 3.0), (8, 2.0), (12, 1.0)]
    assert (folder / "plots/images/reconstruction/8.png").exists() and (folder / "dvc.yaml").exists()
    assert json.loads((folder / "metrics.json").read_text())["loss"] == 1.0
    assert not Path("dvc.yaml").exists()


@needs("wandb")
def test_wandb_keeps_one_run_offline(here):
    two_sessions("wandb")
    files = sorted(Path(loggers.FOLDER, "wandb").rglob(f"*{KEY}.wandb"))
    assert files and all(path.stat().st_size > 0 for path in files)
    assert list(Path(loggers.FOLDER, "wandb").rglob("reconstruction*.png"))


@needs("mlflow")
def test_mlflow_has_one_run_with_curves_and_pictures(here):
    two_sessions("mlflow")
    import mlflow

    client = mlflow.MlflowClient((loggers.FOLDER / "mlflow").absolute().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("replicate").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(4, 3.0), (8, 2.0), (12, 1.0)]
    assert run.data.params == {"mask_ratio": "0.75", "backbone": "vit"} and run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "reconstruction")]
