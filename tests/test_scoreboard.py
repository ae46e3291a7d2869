"""Every published number has one line and a status, and agrees only where the numbers are equal."""

import io
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from replicate.config import load, published
from replicate.errors import UserError
from replicate.report import checks, computed, loader_runs, scoreboard, tables
from replicate.report.ranges import last_nonzero_digit
from replicate.report.results import Results, Run

ROOT = Path(__file__).resolve().parents[1]


def made(budget="laptop", **accuracies):
    runs = {
        name: Run("efficient_learners", name, None, (0, 1, 2), tuple({"top1": value} for value in values))
        for name, values in accuracies.items()
    }
    return Results(budget, runs)


@pytest.fixture(scope="module")
def board():
    return scoreboard.build(made(default_100=[40.0, 41.0, 40.5], default_200=[44.0, 45.2, 44.4]))


def test_one_line_a_published_number_each_with_a_status(board):
    assert board.numbers["id"].tolist() == published.values()["id"].tolist()
    assert set(board.numbers["status"]) <= set(tables.STATUSES)
    assert len(board.claims) == len(published.claims()) and set(board.claims["verdict"]) <= set(
        scoreboard.VERDICTS
    )


def test_equal_numbers_are_equal_as_printed(board):
    values = published.values()
    exact = board.numbers[board.numbers["agreement"] == computed.EQUAL]
    assert len(exact) > 300
    for line in exact.to_dict("records"):
        cell = values.loc[line["id"]]
        if cell["relation"] in ("=", "~") and math.isfinite(line["ours"]):
            digit = last_nonzero_digit(cell["value"]) if cell["relation"] == "~" else cell["unit_last_digit"]
            assert abs(line["ours"] - cell["value"]) <= digit / 2 + 1e-9, line["id"]


@pytest.mark.parametrize(
    "condition",
    [
        {"column": "gflops", "paper": "efficient_mae", "table": "table_1"},
        {"column": "params_m", "paper": "fastmim"},
        {"column": "num_patches"},
        {"column": "masked_patches_with_visible_neighbour"},
        {"column": "first_layer_lr_fraction"},
        {"column": "normalized_pretrain_cost"},
        {"column": "normalized_total_cost"},
        {"paper": "dailymae", "table": "table_8"},
        {"paper": "dailymae", "table": "table_10"},
        {"paper": "fastmim", "column": "gpu_hours_per_epoch", "table": "table_4"},
        {"paper": "fastmim", "column": "speedup_per_epoch"},
        {"column": "pretrain_epochs"},
        {"column": "visible_patches"},
    ],
    ids=lambda condition: "-".join(condition.values()),
)
def test_analytic_numbers_are_settled_without_training(board, condition):
    found = board.numbers.set_index("id").loc[published.select(condition)["id"]]
    assert set(found["status"]) <= {tables.DERIVED, tables.ARITHMETIC} and (found["agreement"] != "").all()


def test_nothing_computed_is_called_reproduced(board):
    computed_ones = board.numbers["status"].isin([tables.DERIVED, tables.ARITHMETIC])
    trained = board.numbers["status"].str.startswith(("trained", "measured"))
    assert computed_ones.sum() > 300 and not (computed_ones & trained).any()
    assert (board.numbers[trained]["run"] != "").all() and (board.numbers[trained]["ours"].notna()).all()


def test_totals_count_every_number_once(board):
    totals = board.totals
    numbers, claims = len(published.values()), published.claims()
    assert (
        totals.loc["all", "total"] == numbers and totals.drop(columns="total").to_numpy().sum() == 2 * numbers
    )
    assert totals.loc["efficient_learners", "trained: reproduced"] == 2
    of_papers = [sum(name.startswith(f"{paper}.") for name in claims) for paper in published.papers()]
    assert sorted(board.verdicts["total"]) == sorted([*of_papers, len(claims)])


def test_what_other_people_measured_is_cited_and_what_is_not_built_is_named(board):
    numbers = board.numbers.set_index("id")
    built = numbers[numbers["paper"] != "crossmae"]
    assert (built["status"] != tables.NOT_BUILT).all()
    assert (
        numbers.loc[published.select({"paper": "mae", "table": "table_3", "method": "DINO"})["id"], "status"]
        == tables.QUOTED
    ).all()
    assert (numbers.loc[numbers["status"] == tables.NOT_BUILT, "why"] != "").all()


def test_files_and_page(tmp_path, monkeypatch, board):
    monkeypatch.setattr(scoreboard, "build", lambda results: board)
    page = tmp_path / scoreboard.PAGE
    page.parent.mkdir()
    page.write_text("# x\n\n<!-- scoreboard -->\n<!-- /scoreboard -->\n\nrest\n")
    shown = dict.fromkeys(published.papers(), ("laptop",))
    scoreboard.write("laptop", tmp_path, shown)
    folder = tmp_path / "tables" / "laptop"
    assert len(pd.read_csv(folder / "scoreboard.csv")) == len(published.values()) and len(
        pd.read_csv(folder / "claims.csv")
    ) == len(published.claims())
    assert {"status"} <= set(pd.read_csv(folder / "scoreboard.csv").columns) and {"verdict"} <= set(
        pd.read_csv(folder / "claims.csv").columns
    )
    text = page.read_text()
    assert (
        "<!-- scoreboard -->" in text
        and f"{len(published.values()):,} published numbers" in text
        and text.endswith("<!-- /scoreboard -->\n\nrest\n")
    )
    assert scoreboard.summary(scoreboard.findings(shown, tmp_path)) in text
    scoreboard.write("laptop", tmp_path, shown | {"mae": ("proxy",)})
    assert page.read_text() == text, "proxy has not been written"
    scoreboard.write("laptop", tmp_path, shown)
    assert page.read_text() == text


def test_a_page_that_shows_another_budget_is_left_alone(tmp_path, monkeypatch, board):
    monkeypatch.setattr(scoreboard, "build", lambda results: board)
    page = tmp_path / scoreboard.PAGE
    page.parent.mkdir()
    text = "<!-- scoreboard -->\n<!-- /scoreboard -->\n"
    page.write_text(text)
    scoreboard.write("smoke", tmp_path, dict.fromkeys(published.papers(), ("laptop",)))
    assert page.read_text() == text
    page.write_text("no markers")
    with pytest.raises(UserError, match="lacks the markers"):
        scoreboard.update_page(page, scoreboard.summary(board))


def test_findings_take_each_paper_from_its_own_budget(board):
    other = scoreboard.build(made("proxy", light_90_llrd_80=[10.0, 11.0, 12.0]))
    boards = {"laptop": board, "proxy": other}
    shown = dict.fromkeys(published.papers(), ("proxy",)) | {"efficient_learners": ("laptop",)}
    found = scoreboard.assemble(boards, shown)
    assert found.numbers["id"].tolist() == board.numbers["id"].tolist() and len(found.claims) == len(
        published.claims()
    )
    own = found.claims["paper"] == "efficient_learners"
    assert set(found.claims[own]["budget"]) <= {"laptop", "by computation"} and set(
        found.claims[~own]["budget"]
    ) <= {"proxy", "by computation"}
    text = scoreboard.summary(found)
    assert set(found.scale.split(" or ")) == {"laptop", "proxy"} and f"at the budget {found.scale}:" in text
    assert "| MAE Are Secretly Efficient Learners | laptop |" in re.sub(" +", " ", text)


def test_of_several_budgets_the_one_that_ran_most_is_shown():
    """A claim by its checks, a printed table by its numbers, the first budget on a tie."""
    two = {"default_200": [10.0, 11.0, 12.0], "default_100": [8.0, 9.0, 10.0]}
    other = {"default_100": [9.0, 9.5, 10.0], "batch_512": [20.0, 21.0, 22.0]}
    first = scoreboard.build(made("laptop", **other))
    boards = {"laptop": first, "proxy": scoreboard.build(made("proxy", **two))}
    found = scoreboard.assemble(boards, dict.fromkeys(published.papers(), ("laptop", "proxy")))
    assert found.numbers["id"].tolist() == first.numbers["id"].tolist()
    assert found.claims["claim"].tolist() == first.claims["claim"].tolist()
    numbers = found.numbers[found.numbers["paper"] == "efficient_learners"]
    assert (numbers.groupby(["table", "panel"])["budget"].nunique() == 1).all(), "no table mixes budgets"
    chosen = numbers.groupby("table")["budget"].first()
    assert chosen["table_1"] == "proxy" and chosen["table_2"] == "laptop" and chosen["table_6"] == "laptop"
    budgets = found.claims.set_index("claim")["budget"]
    assert budgets["efficient_learners.default_recipe_not_converged"] == "proxy"
    assert budgets["efficient_learners.supmae_transfer"] == "laptop"


def test_a_missing_scoreboard_says_how_to_write_it(tmp_path):
    with pytest.raises(UserError, match="python -m replicate scoreboard"):
        scoreboard.read("laptop", tmp_path)


def words_of(text: str) -> list[str]:
    """Words and numbers of a text, whatever the form of its tables and the order of the papers."""
    return sorted(re.findall(r"[^\s|:-]+", text))


def test_the_committed_page_shows_the_committed_scoreboard():
    board = scoreboard.findings(load(ROOT / "params.yaml").findings, ROOT)
    found, _, rest = (ROOT / scoreboard.PAGE).read_text().partition(scoreboard.START)
    shown, _, after = rest.partition(scoreboard.END)
    assert words_of(shown) == words_of(scoreboard.summary(board))
    papers = [re.escape(title) for title in published.papers().values() if title != "CrossMAE"]
    assert all(re.search(f"(?m)^## {title}", found) for title in papers) and not after.strip(), (
        "findings first"
    )


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(frame.to_csv(index=False)), dtype=str, keep_default_na=False)


def _held_by_git(folder: Path) -> None:
    """Copy `measured/` and `benchmarks/` as git lists them; everything without a checkout."""
    names = ("measured", "benchmarks")
    listed = (
        subprocess.run(["git", "ls-files", "-z", *names], cwd=ROOT, capture_output=True, text=True)
        if (ROOT / ".git").exists()
        else None
    )
    if listed is None or listed.returncode:
        for name in names:
            shutil.copytree(ROOT / name, folder / name)
        return
    for file in filter(None, listed.stdout.split("\0")):
        if (ROOT / file).exists():  # one that was removed and not committed yet
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)


def test_the_findings_follow_from_what_git_holds(tmp_path):
    """`measured/` and `benchmarks/results/` alone give every number: none is on one machine only."""
    _held_by_git(tmp_path)
    assert list((tmp_path / "measured").rglob("metrics.json")) and list(
        (tmp_path / "benchmarks/results").glob("*.json")
    )
    shutil.copy(ROOT / "params.yaml", tmp_path)
    findings = load(ROOT / "params.yaml").findings
    for budget in {name for named in findings.values() for name in named}:
        papers = {paper for paper, named in findings.items() if budget in named}
        found, committed = scoreboard.build(loader_runs.load(budget, tmp_path)), scoreboard.read(budget, ROOT)
        for now, then in ((found.numbers, committed.numbers), (found.claims, committed.claims)):
            now, then = (_as_text(frame[frame["paper"].isin(papers)]) for frame in (now, then))
            assert len(then)
            key = now.columns[0]
            now, then = (frame.sort_values(key, ignore_index=True) for frame in (now, then))
            pd.testing.assert_frame_equal(now, then, obj=f"tables/{budget}")


def test_what_git_does_not_hold_is_no_finding(tmp_path, monkeypatch):
    home, taken = tmp_path / "home", tmp_path / "taken"
    for name in ("measured/kept.json", "benchmarks/kept.json", "measured/proxy/new.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("{}")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", home)
    _held_by_git(taken)
    assert (taken / "measured/proxy/new.json").exists(), "without a checkout, what is there"
    shutil.rmtree(taken)
    subprocess.run(["git", "init", "-q"], cwd=home, check=True)
    subprocess.run(["git", "add", "measured/kept.json", "benchmarks/kept.json"], cwd=home, check=True)
    _held_by_git(taken)
    assert sorted(str(path.relative_to(taken)) for path in taken.rglob("*.json")) == [
        "benchmarks/kept.json",
        "measured/kept.json",
    ]


def test_what_was_not_run_has_its_price_at_the_papers_scale(board):
    missing = board.numbers[(board.numbers["status"] == tables.NOT_RUN) & (board.numbers["run"] != "")]
    priced = missing["why"].str.contains("A100-hours by the planner")
    assert priced.mean() > 0.9, missing["why"][~priced].head().tolist()


def test_prices_are_the_planners():
    from replicate.cost import plan
    from replicate.cost.rates import rates_of

    params = load(ROOT / "params.yaml")
    names = ["light_90", "light_90_llrd_80", "full_75"]
    lines = plan.plan(params, names, "paper", rates_of("a100"), 8)
    assert tables.prices()["full_75"] == pytest.approx(lines.loc["full_75", "device_hours"], rel=0.01)
    assert tables.prices()["light_90_llrd_80"] == pytest.approx(
        lines.loc[["light_90", "light_90_llrd_80"], "device_hours"].sum(), rel=0.01
    )


@pytest.mark.parametrize("paper", published.papers())
def test_a_papers_readme_counts_its_verdicts(paper):
    board = scoreboard.findings(load(ROOT / "params.yaml").findings, ROOT)
    text = (ROOT / "papers" / paper / "README.md").read_text()
    shown = text.partition(scoreboard.START)[2].partition(scoreboard.END)[0]
    assert words_of(shown) == words_of(scoreboard.room_summary(board, paper))


def printed_by_the_mechanism() -> list[Path]:
    """Everything in git that shows verdicts of claims."""
    rooms = [ROOT / "papers" / paper / "README.md" for paper in published.papers()]
    return [ROOT / scoreboard.PAGE, *rooms, *sorted((ROOT / "tables").glob("*/scoreboard.md"))]


@pytest.mark.parametrize("path", printed_by_the_mechanism(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_prints_an_opposite_finding_without_its_regime(path):
    for line in path.read_text().splitlines():
        is_finding = "opposite at proxy scale" in line and "Effect:" in line
        assert not is_finding or re.search(r"px; (.*steps.*|no model); budget \w+", line), line


def test_findings_hold_no_synthetic_verdict():
    board = scoreboard.findings(load(ROOT / "params.yaml").findings, ROOT)
    assert not set(board.claims["verdict"]) & {checks.SHOWN, checks.OPPOSITE_SYNTHETIC, checks.NO_VERDICT}
