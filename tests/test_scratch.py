"""`pretrain RUN KEY=VALUE`: a changed recipe, outside everything that the pipeline reads."""

import json
from pathlib import Path

import pytest
from project import write_params

from replicate.cli import main
from replicate.config import load
from replicate.pipeline.scratch import SCRATCH, changed

FULL, RUN = "light_90", "light_90_llrd_65"


def told(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_changed_pre_training_and_its_evaluation_stay_outside_the_results(project, capsys):
    assert main(["data", "write"]) == 0
    assert "python -m replicate pretrain light_90 mask_ratio=0.5" in told(
        capsys, "evaluate", RUN, "pretrain.mask_ratio=0.5"
    )
    assert main(["pretrain", FULL, "mask_ratio=0.5"]) == 0
    [folder] = SCRATCH.iterdir()
    assert str(folder) in capsys.readouterr().out
    found = metrics(folder)
    assert found["run"]["mask_ratio"] == found["resolved"]["mask_ratio"] == 0.5
    assert main(["log", FULL, "mask_ratio=0.5"]) == 0
    assert main(["evaluate", RUN, "pretrain.mask_ratio=0.5", "epochs=300"]) == 0
    [tuned] = set(SCRATCH.iterdir()) - {folder}
    assert metrics(tuned)["run"]["epochs"] == 300 and "top1" in metrics(tuned)["results"]
    assert not Path("results").exists() and not Path("measured").exists()
    assert "no such file" in told(capsys, "keep", FULL) and not Path("measured").exists()
    # The same change in params.yaml is the same run: its seeds are taken from the store.
    write_params(project, runs={FULL: {"mask_ratio": 0.5}})
    assert main(["pretrain", FULL]) == 0
    same = metrics(load().results_folder(FULL))
    assert same["results"] == found["results"] and same["resolved"] == found["resolved"]
    assert told(capsys, "pretrain", FULL, "mask_ratio=0.5").endswith(f"of run {FULL} at budget smoke")


@pytest.mark.parametrize(
    ("command", "setting", "message"),
    [
        (("pretrain", FULL), "mask_ration=0.5", f"of run {FULL}; did you mean `mask_ratio`?"),
        (("pretrain", FULL), "mask_ratio=1.5", "mask_ratio = 1.5: input should be less than 1"),
        (("pretrain", FULL), "mask_ratio=high", "mask_ratio = 'high': input should be a valid number"),
        (("pretrain", FULL), "mask_ratio", "'mask_ratio' is no setting; write KEY=VALUE"),
        (("pretrain", FULL), "betas=[0.9", "betas=[0.9: not valid YAML"),
        (("pretrain", FULL), "mask_ratio=0.9", f"changes nothing of run {FULL} at budget smoke"),
        (("pretrain", FULL), "pretrain.mask_ratio=0.5", "starts from no pre-training"),
        (("evaluate", RUN), "pretrain=light_9", "which is not a pretrain run; did you mean light_90"),
        (("evaluate", RUN), "pretrain={weights: x}", "released weights are named under `runs`"),
        (("pretrain", "light_9"), "mask_ratio=0.5", "no run 'light_9'; did you mean"),
    ],
)
def test_a_mistaken_setting_is_one_clear_line(project, capsys, command, setting, message):
    line = told(capsys, *command, setting)
    assert line.startswith("error: ") and message in line
    assert not SCRATCH.exists()


def test_each_recipe_and_budget_has_a_folder_of_its_own(project):
    def folder(*settings: str) -> Path:
        return changed("params.yaml", FULL, settings).results_folder(FULL)

    half = folder("mask_ratio=0.5")
    assert half == folder("mask_ratio=5e-1") != folder("mask_ratio=0.6")
    assert folder("mask_ratio=0.5", "base_lr=1e-3") != half
    params = changed("params.yaml", FULL, ["base_lr=1e-3"])
    assert params.run(FULL).base_lr == 0.001 and params.results_folder(RUN) == load().results_folder(RUN)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("budget: smoke", "budget: brief"))
    assert folder("mask_ratio=0.5") != half
