"""Scores of segmentation from one confusion matrix: mean IoU, mean accuracy, accuracy of all pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from replicate.errors import UserError
from replicate.trainers.session import Session
from replicate.transfer.ade import IGNORED


class Overlap:
    """Counts pixels by true and predicted class over any number of images."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Integer maps of one shape; pixels whose truth is `IGNORED` do not count."""
        truth, predicted = truth.flatten().long().cpu(), predicted.flatten().long().cpu()
        known = truth != IGNORED
        index = truth[known] * self.classes + predicted[known]
        self.counts += torch.bincount(index, minlength=self.classes**2).view(self.classes, self.classes)

    def percent(self, session: Session) -> dict[str, float]:
        """miou, macc and aacc in percent over the images of all processes.

        IoU averages over classes that the truth or the prediction has, accuracy over those of the truth.
        Raises UserError when no pixel is labelled.
        """
        summed = session.all_reduce_sum(*self.counts.flatten().tolist())
        counts = torch.tensor(summed, dtype=torch.float64).view(self.classes, self.classes)
        right, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        if not counts.sum():
            raise UserError("no pixel of a validation mask is labelled, so there is no score")
        iou, accuracy = right / (truth + predicted - right), right / truth
        scores = {
            "miou": iou[~iou.isnan()].mean(),
            "macc": accuracy[~accuracy.isnan()].mean(),
            "aacc": right.sum() / counts.sum(),
        }
        return {name: 100.0 * float(score) for name, score in scores.items()}
