"""By how much an image folder's samples and FFCV's differ (DailyMAE, Figure 6), on the photographs that
scikit-image carries.

Run: python benchmarks/codec_differences.py

Nothing is timed. The decoder's DCT, the resize filter and the compression to 500_95 all differ; crop and size
are the same. One value a photograph: the mean absolute difference of its pixels, values in 0..1.
"""

from __future__ import annotations

import json

from replicate.cost.bench import RESULTS, describe_machine
from replicate.papers import dailymae_codecs
from replicate.provenance import git_state


def main() -> None:
    images = dailymae_codecs.photographs()
    found = dailymae_codecs.sample_differences(images)[dailymae_codecs.ALL_STEPS]
    row = {
        "name": "codec_differences",
        "case": "an image folder's samples against FFCV's, 500_95, 224 px",
        "images": len(images),
    }
    row |= {
        "mean_abs_error": [round(value, 6) for value in found],
        "machine": describe_machine(),
        "revision": git_state()["revision"],
    }
    (RESULTS / "codec_differences.json").write_text(json.dumps([row], indent=2) + "\n")
    print(f"{row['case']}: {sum(found) / len(found):.4f}")


if __name__ == "__main__":
    main()
