"""The command line: light to start, and one clear line with exit status 2 for each mistake."""

import argparse
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from project import ENVIRONMENT, ROOT, read, write_params

from replicate import cli
from replicate.cli import main
from replicate.config import load
from replicate.pipeline.store import RunStore
from replicate.report import loader_runs, log, tables


def told(capsys, *arguments: str) -> str:
    """What a mistaken command says: one line on stderr, exit status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def image_folder(root: Path, classes: int = 2, images: int = 3) -> Path:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                Image.fromarray(generator.integers(0, 256, (40, 48, 3), np.uint8)).save(
                    folder / f"{number}.jpg"
                )
    return root


def write_folder_params(project: Path, root: Path) -> None:
    write_params(project, data={"source": str(root), "train_images": None, "val_images": None})


def test_help_does_not_import_torch():
    code = (
        "import sys; from replicate.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def parsers(parser=None, path=()):
    """Every command with its words: (("data", "write"), parser)."""
    for action in (parser or cli._parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield (*path, name), command
                yield from parsers(command, (*path, name))


def test_help_lists_each_command_once_and_leaves_the_pipelines_own_to_help_all(capsys):
    commands = {path[0] for path, _ in parsers() if len(path) == 1}
    listed = [name for names in (*cli.GROUPS.values(), cli.INTERNAL) for name in names]
    assert sorted(listed) == sorted(commands)
    for option, shown in (("--help", set(listed) - set(cli.INTERNAL)), ("--help-all", set(listed))):
        with pytest.raises(SystemExit):
            main([option])
        lines = capsys.readouterr().out.splitlines()
        found = [match[1] for line in lines if (match := re.match("  ([a-z]+) ", line))]
        assert sorted(found) == sorted(shown)
        assert max(map(len, lines)) <= 100


def test_every_command_has_an_example_that_it_takes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for path, command in parsers():
        head, _, example = command.format_help().rpartition("python -m replicate ")
        assert head.endswith("example:\n  ") and example.split()[: len(path)] == list(path), path
        assert cli._parser().parse_args(example.split()).handler
        assert max(map(len, command.format_help().splitlines())) <= 100, path


def test_examples_name_runs_that_exist():
    params = load(ROOT / "params.yaml")
    for example in (command.epilog.split("replicate ")[1].split() for _, command in parsers()):
        options = vars(cli._parser().parse_args(example))
        for name in (*options.get("runs", ()), *filter(None, [options.get("run")])):
            params.run(name)
        if options.get("search"):
            params.search(options["search"])


def documented():
    """(page, words) of every command of this project in the documents' code, without its comment."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in [*pages, *(ROOT / "papers").glob("**/README.md")]:
        text = page.read_text()
        fenced = re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
        for code in [*fenced, *re.findall(r"^    .*", text, re.MULTILINE), *re.findall(r"`([^`\n]+)`", text)]:
            for line in re.split(r"\n|&&|[;|]", code):
                words = re.sub(r"<.*?>", "X", line.partition("#")[0]).split()
                if words[:1] == ["make"] or words[:3] == ["python", "-m", "replicate"]:
                    yield page.name, words


def test_documented_commands_are_taken_by_the_parser_and_name_what_exists():
    params = load(ROOT / "params.yaml")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = list(documented())
    assert len(found) > 50
    for page, words in found:
        if words[0] == "make":
            named = {word for word in words[1:] if "=" not in word}
            assert named <= targets, (page, words)
        elif len(words) > 3:
            options = vars(cli._parser().parse_args(shlex.split(" ".join(words[3:]))))
            for name in (*(options.get("runs") or ()), *filter(None, [options.get("run")])):
                assert name.isupper() or params.run(name), (page, words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prteain light_75", "COMMAND 'prteain' does not exist; did you mean pretrain"),
        ("data wirte", "ACTION 'wirte' does not exist; known are"),
        ("weights export a b --format onnx", "--format 'onnx' does not exist; known are hf, reference"),
        ("pretrain", "the following arguments are required: run"),
    ],
)
def test_a_mistyped_command_is_one_line(capsys, line, message):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    [said] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and said.startswith(f"error: {message}") and "--help" in said


def test_unknown_run_and_wrong_command(project, capsys):
    assert "no run 'light_9'; did you mean" in told(capsys, "pretrain", "light_9")
    assert "use `python -m replicate evaluate light_90_llrd_65`" in told(
        capsys, "pretrain", "light_90_llrd_65"
    )


@pytest.mark.parametrize("buffered", ["", "1"])
def test_output_that_nobody_reads_any_more_ends_a_command_quietly(project, buffered):
    """As in `python -m replicate log RUN | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | ENVIRONMENT | {"PYTHONUNBUFFERED": buffered}
    done = subprocess.run(
        [sys.executable, "-m", "replicate", "budget"], stdout=writer, stderr=subprocess.PIPE, env=environment
    )
    os.close(writer)
    assert (done.stderr, done.returncode) == (b"", 141)


def test_training_without_data_says_how_to_write_it(project, capsys):
    assert "python -m replicate data write" in told(capsys, "pretrain", "light_90")


def test_evaluating_without_weights_says_what_to_train(project, capsys):
    assert main(["data", "write"]) == 0
    assert "python -m replicate pretrain light_90" in told(capsys, "evaluate", "light_90_llrd_65")
    assert not Path("results/smoke/efficient_learners/light_90_llrd_65/metrics.json").exists()


def test_missing_data_folder(project, capsys):
    write_folder_params(project, project / "nowhere")
    assert "nowhere" in told(capsys, "data", "write")


def test_tiny_imagenet_that_is_not_there_is_told_with_the_command_that_brings_it(project, capsys):
    write_folder_params(project, Path("data/tiny-imagenet"))
    assert "`python -m replicate data fetch tiny-imagenet`" in told(capsys, "data", "write")


@pytest.mark.parametrize("action", ["write", "check", "info"])
def test_a_data_set_that_is_not_stated_is_told_with_those_that_are(project, capsys, action):
    message = told(capsys, "data", action, "nosuch")
    assert "there is no dataset 'nosuch'" in message and "full" in message


def test_a_benchmark_tells_a_folder_that_is_not_there_from_an_empty_one(project, capsys):
    assert "nowhere: no such folder" in told(capsys, "bench", "loader", "--images", "nowhere")
    Path("empty").mkdir()
    assert "empty: no image in it" in told(capsys, "bench", "loader", "--images", "empty")


def test_empty_class_folder(project, capsys):
    root = image_folder(project / "images")
    (root / "train" / "class_9").mkdir()
    (root / "val" / "class_9").mkdir()
    write_folder_params(project, root)
    assert "class_9" in told(capsys, "data", "write")


@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_damaged_source_image_is_named_and_leaves_no_data_set(project, capsys, damage):
    root = image_folder(project / "images")
    victim = root / "train" / "class_1" / "1.jpg"
    victim.write_bytes(victim.read_bytes()[:400] if damage == "truncated" else b"this is no picture\n")
    write_folder_params(project, root)
    message = told(capsys, "data", "write")
    assert (
        str(Path("class_1") / "1.jpg") in message
        and "`on_error: skip` in the data set's settings leaves such images out" in message
    )
    assert not Path("data/smoke/full/manifest.json").exists()


def test_truncated_beton_is_named_before_training(project, capsys):
    assert main(["data", "write"]) == 0
    beton = Path("data/smoke/full/train.beton")
    beton.write_bytes(beton.read_bytes()[:-5000])
    assert "train.beton" in told(capsys, "pretrain", "light_90")
    assert "train.beton" in told(capsys, "data", "check")
    assert not Path("results/smoke/efficient_learners/light_90/metrics.json").exists()


def test_data_of_other_settings_than_stated_are_not_trained_on(project, capsys):
    """Without DVC nothing writes the data anew when params.yaml names others."""
    assert main(["data", "write"]) == 0
    write_params(project, data={"train_images": 96})
    message = told(capsys, "pretrain", "light_90")
    assert "data/smoke/full: was written with train_images 128, where params.yaml now says 96" in message
    assert "python -m replicate data write full" in message
    datasets = read("params.yaml")["datasets"]
    datasets["full"]["val"]["quality"] = 60
    write_params(project, datasets=datasets)
    assert "was written with val.quality 100, where params.yaml now says 60" in told(
        capsys, "log", "light_90"
    )
    write_params(project)
    assert "has no log" in told(capsys, "log", "light_90")


def test_a_run_whose_images_are_not_written_has_no_log(project, capsys):
    shutil.rmtree(project / "data", ignore_errors=True)
    assert "its images, data/smoke/full, are not written yet" in told(capsys, "log", "light_90")


def test_a_plan_refuses_an_unknown_run_before_it_measures(project, capsys, monkeypatch):
    monkeypatch.setattr("replicate.cost.rates.measure", lambda *_: pytest.fail("measured first"))
    assert "there is no run 'light_9'" in told(capsys, "plan", "light_9")


def test_a_log_is_a_table_with_a_line_an_epoch_and_seed(project, capsys, monkeypatch):
    write_params(project, budget={"seeds": 2})
    assert main(["data", "write"]) == 0
    monkeypatch.setattr(log, "store_of", lambda _, seed: RunStore(f"key{seed}"))
    store = RunStore("key1")
    store.folder.mkdir(parents=True)
    store.start_log([])
    assert "has no log" in told(capsys, "log", "light_90")
    widest = {f"probe_{number}_of_a_long_name": 0.5 for number in range(4)}
    store.start_log([{"epoch": 0, "loss": 1.23456789, "images": 1281167} | widest])
    store.log({"epoch": 1, "step": 7, "steps": 312, "loss": 1.2, "images": 896})
    capsys.readouterr()
    assert main(["log", "light_90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:4] == ["1", "0", "1.2346", "1,281,167"]
    assert lines[3].split() == ["1", "1", "1.2", "896"] and max(map(len, lines)) <= 100
    assert lines[-2:] != lines[2:4] and lines[-1].split() == ["1", "1", "7", "312"]


def test_weights_of_another_model_are_refused(project, capsys):
    from replicate.models.mae import MAE
    from replicate.models.weights import save_weights

    assert main(["data", "write"]) == 0
    weights = Path("results/smoke/efficient_learners/light_90/weights/seed0.safetensors")
    save_weights(MAE(32, 8, 64, 3, 2, 32, 1, 1).state_dict(), weights)
    message = told(capsys, "evaluate", "light_90_llrd_65")
    assert "seed0.safetensors" in message and "width 64, 3 blocks" in message


class Malicious:
    """Writes a file when unpickled."""

    def __reduce__(self):
        return (Path.write_text, (Path("owned"), "code ran"))


def test_pickle_with_code_is_refused_without_running_it(project, capsys):
    with open("evil.pth", "wb") as file:
        pickle.dump({"model": Malicious()}, file)
    assert "evil.pth" in told(capsys, "weights", "import", "evil.pth", "out.safetensors")
    torch.save({"model": Malicious()}, "evil2.pth")
    assert "evil2.pth" in told(capsys, "weights", "import", "evil2.pth", "out.safetensors")
    assert not Path("owned").exists() and not Path("out.safetensors").exists()


def test_a_nan_names_the_run_and_the_step(project, capsys):
    write_params(project, runs={"light_90": {"base_lr": 1e9}})
    assert main(["data", "write"]) == 0
    assert "run light_90 seed 0: the loss became" in told(capsys, "pretrain", "light_90")
    assert not Path("results/smoke/efficient_learners/light_90/metrics.json").exists()


@pytest.mark.slow
def test_a_papers_grid_fills_its_table(project):
    """`grid fastmim` trains the runs that are stated, headline and grid, each after what it starts from; they
    show in the paper's tables.
    """
    kept = {
        "fastmim_vit_pixel_128",
        "fastmim_swin_scratch",
        "fastmim_vit_hog_128",
        "fastmim_depth_10",
        "fastmim_invariance",
    }
    kept |= {f"{name}_ft" for name in kept}
    shutil.copytree(ROOT / "papers", project / "papers")
    path = project / "papers" / "fastmim" / "runs.yaml"
    room = yaml.safe_load(path.read_text())
    for section in (room, room["grid"]):
        for group in ("pretrain", "evaluate"):
            section[group] = {name: run for name, run in section.get(group, {}).items() if name in kept}
    path.write_text(yaml.safe_dump(room))
    stated = {name for name, run in load(project / "params.yaml").runs.items() if run.paper == "fastmim"}
    assert main(["grid", "fastmim"]) == 0
    results = loader_runs.load("smoke", project)
    assert (
        stated == kept & stated == {name for name, run in results.runs.items() if run.paper == "fastmim"}
        and len(stated) == 9
    )
    cells = tables.cells("fastmim", results)
    shown = cells[cells["run"].isin(stated)]
    assert shown["ours"].notna().all() and set(shown["status"]) == {tables.NO_VERDICT}
    assert stated - set(shown["run"]) == {
        "fastmim_depth_10",
        "fastmim_swin_scratch",
        "fastmim_invariance",
    }  # in no table themselves
    waiting = cells[cells["status"] == tables.NOT_RUN]
    assert len(waiting) > 100 and waiting["ours"].isna().all()
