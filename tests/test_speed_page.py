"""What docs/speed.md says is what the benchmarks wrote."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "pre-training step of ViT-B, float32": ("ours float32 against theirs float32",),
    "the same, bfloat16 autocast": ("ours bf16 against theirs bf16",),
    "decoder masking": ("loop against plain .75",),
    "exact P2Dist": ("p2dist exact vs scipy loop", "ratio 0.85"),
    "HOG of 256 images": ("hog batch vs scikit-image loop", "2 threads"),
    "FastMIM's step": ("step: FastMIM vs SimMIM ViT-B",),
    "exact, libjpeg": ("crop_decode crop against stock FFCV, 500 px quality 95", "2 threads"),
    "seek index and fused resize": (
        "crop + entropy + index + fused against stock FFCV, 500 px quality 95",
        "2 threads",
    ),
    "palindrome s5": ("daily_s5 vs daily_224",),
}
LINE = re.compile(r"^\| `(\w+)` \| (.+) \| .+ \| ([\d.]+) \|$", re.MULTILINE)


def lines():
    section = (ROOT / "docs/speed.md").read_text().partition("## Side by side")[2].partition("\n## ")[0]
    return LINE.findall(section)


def test_every_line_has_a_case():
    assert len(lines()) == len(CASES) == 9


@pytest.mark.parametrize("line", lines(), ids=lambda line: line[1][:30])
def test_a_printed_ratio_is_the_measured_one(line):
    file, ours, printed = line
    [needles] = [needles for words, needles in CASES.items() if words in ours]
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())
    [row] = [row for row in rows if all(needle in f"{row['name']} {row['case']}" for needle in needles)]
    digits = len(printed.partition(".")[2])
    assert f"{row['ratio']:.{digits}f}" == printed or f"{row['ratio']:.2g}" == f"{float(printed):.2g}"
