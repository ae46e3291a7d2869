"""Run the whole pipeline at the smoke budget on a copy of the working tree, and check what README promises of
it.

One `dvc repro` ends with tables, figures, executed notebooks and a clean status; the next one runs nothing.
One more value of a sweep trains that run and regenerates its paper. A value changed in params.yaml retrains
that run alone. A notebook saved in JupyterLab and a file that a run does not name retrain nothing.

The copy holds what git would commit, with changes not yet committed; data and results stay out of it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGET = "smoke"
PAPER = "efficient_learners"
NEW_RUN = "light_90_llrd_70"
NEW_LINE = f"  {NEW_RUN}: {{base: tuned_finetune, pretrain: light_90, layer_decay: 0.7}}\n"
REPORT = [f"notebook@{PAPER}", "scoreboard", "site"]
FOREIGN, OWN = "replicate/targets/hog.py", "pretrain@fastmim_vit_hog_128"
EXPECTED = (
    "executed/inputs/runs/*.json",
    f"executed/{BUDGET}/papers/{PAPER}.ipynb",
    f"executed/{BUDGET}/site/index.html",
    f"figures/{BUDGET}/{PAPER}/*.png",
    f"tables/{BUDGET}/{PAPER}/*.csv",
    f"tables/{BUDGET}/{PAPER}/*.md",
)
STAGE = re.compile(r"^Running stage '([^']+)'", re.MULTILINE)
RUNS_OF_PAPER = """
import json, sys
from replicate.config import load
print(json.dumps([name for name, run in load("params.yaml").runs.items() if run.paper == sys.argv[1]]))
"""


class SmokeError(Exception):
    """A promise of the pipeline that does not hold."""


def copy_tree(target: Path) -> None:
    """Copy what git would commit and commit it: the pipeline records its revision."""
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in sorted(set(listed.split("\0")) - {""}):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    identity = ("-c", "user.name=smoke", "-c", "user.email=smoke@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    subprocess.run(["git", "add", "-A"], cwd=target, check=True)
    subprocess.run(["git", *identity, "commit", "-q", "-m", "Working tree"], cwd=target, check=True)


class Pipeline:
    """Commands in the copy, with this interpreter's environment and the copy's own package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        # A second thread does not speed up models as small as the smoke budget's.
        own = {"PATH": path, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1", "MPLBACKEND": "Agg"}
        self.env = {"OMP_NUM_THREADS": "1"} | os.environ | own

    def show(self, *command: str) -> float:
        """Run with visible output; returns wall seconds."""
        start = time.monotonic()
        code = subprocess.run(command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL).returncode
        if code:
            raise SmokeError(f"`{' '.join(command)}` failed with exit code {code}")
        return time.monotonic() - start

    def read(self, *command: str) -> str:
        """Run and return what it printed. Raises SmokeError when it fails."""
        options = {"cwd": self.folder, "env": self.env, "stdin": subprocess.DEVNULL}
        done = subprocess.run(command, capture_output=True, text=True, **options)
        if done.returncode:
            raise SmokeError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def check_status(self) -> None:
        changed = json.loads(self.read("dvc", "status", "--json") or "{}")
        if changed:
            raise SmokeError(f"dvc status is not clean after dvc repro: {', '.join(sorted(changed))}")

    def stages(self, *options: str) -> list[str]:
        """Stages that `dvc repro` runs, in order; with `--dry`, those that it would run."""
        return STAGE.findall(self.read("dvc", "repro", *options))

    def check_nothing_runs(self) -> float:
        start = time.monotonic()
        ran = self.stages()
        if ran:
            raise SmokeError(f"a second dvc repro runs {ran[0]}")
        return time.monotonic() - start

    def check_one_more_value(self) -> None:
        """README, "Adding a run": a new line trains its run and regenerates its paper's notebook."""
        runs = self.folder / "papers" / PAPER / "runs.yaml"
        runs.write_text(runs.read_text().replace("\nevaluate:\n", f"\nevaluate:\n{NEW_LINE}", 1))
        self.read("python", "-m", "replicate", "stages")
        ran = self.stages()
        if ran != ["inputs", f"evaluate@{NEW_RUN}", *REPORT]:
            raise SmokeError(f"one more value of a sweep runs {', '.join(ran)}")

    def check_changed_value(self) -> None:
        """A value under `runs:` of params.yaml would retrain that run alone."""
        params = self.folder / "params.yaml"
        before = params.read_text()
        changed = re.sub(r"(?m)^runs:.*$", f"runs: {{{NEW_RUN}: {{layer_decay: 0.72}}}}", before)
        params.write_text(changed)
        self.stages("inputs")
        would_run = self.stages("--dry")
        if would_run != [f"evaluate@{NEW_RUN}", *REPORT]:
            raise SmokeError(f"a value changed in params.yaml runs {', '.join(would_run) or 'nothing'}")
        params.write_text(before)
        self.stages("inputs")

    def check_saved_notebook(self) -> None:
        """JupyterLab writes outputs into a notebook; its stripped copy stays the same."""
        path = self.folder / "notebooks" / f"{PAPER}.ipynb"
        notebook = json.loads(path.read_text())
        cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        cell["execution_count"] = 7
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["seen in Lab\n"]}]
        path.write_text(json.dumps(notebook))
        ran = self.stages()
        if ran != [f"source@{PAPER}"]:
            raise SmokeError(f"saving {path.name} in JupyterLab runs {', '.join(ran) or 'nothing'}")

    def check_foreign_edit(self) -> None:
        """A change of HOG retrains the runs that predict it, and none of another paper."""
        with (self.folder / FOREIGN).open("a") as file:
            file.write("\n# changed\n")
        self.stages("inputs")
        names = json.loads(self.read("python", "-c", RUNS_OF_PAPER, PAPER))
        would_run = self.stages("--dry")
        if OWN not in would_run:
            raise SmokeError(f"a change of {FOREIGN} does not run {OWN}")
        hit = [stage for stage in would_run if stage.partition("@")[2] in names]
        if hit:
            raise SmokeError(f"a change of {FOREIGN} runs {hit[0]}")

    def check_outputs(self) -> None:
        for pattern in EXPECTED:
            if not any(self.folder.glob(pattern)):
                raise SmokeError(f"dvc repro left no {pattern}")


def smoke(folder: Path) -> None:
    copy_tree(folder)
    pipeline = Pipeline(folder)
    pipeline.show("python", "-m", "replicate", "budget", BUDGET)
    first = pipeline.show("dvc", "repro")
    pipeline.check_status()
    pipeline.check_outputs()
    again = pipeline.check_nothing_runs()
    pipeline.check_one_more_value()
    pipeline.check_changed_value()
    pipeline.check_saved_notebook()
    pipeline.check_foreign_edit()
    times = f"dvc repro {first:.0f} s, again with nothing to do {again:.1f} s"
    print(f"smoke pipeline: {times}, status clean, one more value runs alone")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it")
    arguments = parser.parse_args()
    try:
        if arguments.keep:
            arguments.keep.mkdir(parents=True)
            smoke(arguments.keep.resolve())
        else:
            with tempfile.TemporaryDirectory(prefix="replicate-smoke-") as folder:
                smoke(Path(folder).resolve())
    except (SmokeError, FileExistsError) as error:
        print(f"smoke pipeline: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
