"""Average precision of boxes and masks, as COCO defines it (Lin et al. 2014), by faster-coco-eval."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

from replicate.errors import UserError

KINDS = {"box": "bbox", "mask": "segm"}
NAMES = ("ap_{}", "ap50_{}", "ap75_{}")


def average_precision(truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, float]:
    """AP over overlaps of .5 to .95, AP50 and AP75, of boxes and of masks, in percent.

    truth  the content of a COCO annotation file
    found  detections: image_id, category_id, score, bbox (left, top, width, height), segmentation (run
           lengths)

    Raises UserError when there is nothing to find.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if not any(not note.get("iscrowd") for note in truth["annotations"]):
        raise UserError("the validation annotations hold no object, so average precision is undefined")
    if not found:
        return {name.format(kind): 0.0 for kind in KINDS for name in NAMES}
    scores = {}
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(_complete(truth))
        detections = reference.loadRes(copy.deepcopy(found))
        for kind, of_coco in KINDS.items():
            evaluation = COCOeval_faster(reference, detections, of_coco, print_function=_silent)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for name, value in zip(NAMES, evaluation.stats, strict=False):
                scores[name.format(kind)] = 100 * float(value)
    return scores


def _silent(*_: Any) -> None:
    pass


def _complete(truth: dict[str, Any]) -> dict[str, Any]:
    """A copy in which every annotation has what the metrics read: an area, and whether it is a crowd."""
    notes = [
        {"iscrowd": 0, "area": note["bbox"][2] * note["bbox"][3]} | note for note in truth["annotations"]
    ]
    return truth | {"annotations": notes}
