"""Distillation beside the reconstruction: L = L_hog + sum_i |sigma(z_i^S) - z_i^T|_1 (FastMIM sec 5.6, Table 9).

The teacher is a larger, fine-tuned model of the same family (ViT-L for ViT-B, PVTv2-b5 for PVTv2-b2). The paper does not
define sigma, i or the layer. Here sigma is a learned projection from the student's width to the teacher's, which it has to
be for the two to be comparable, i runs over the tokens, and z is the encoders' output after the last norm. The sum is taken
as a mean over tokens and channels: a plain sum over 49 tokens of 1024 channels would drown a HOG loss of about .05.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from replicate.errors import UserError


class Distillation(nn.Module):
    """The projection sigma and the loss term; the projection is thrown away after pre-training."""

    def __init__(self, student_width: int, teacher_width: int, weight: float = 1.0) -> None:
        super().__init__()
        self.projection = nn.Linear(student_width, teacher_width)
        self.weight = weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """student (N, T, C_s), teacher (N, T, C_t) -> the term to add to the loss; no gradient reaches the teacher.

        Raises UserError when the two do not have the same tokens.
        """
        if student.shape[:2] != teacher.shape[:2]:
            shapes = f"{tuple(student.shape[:2])} and {tuple(teacher.shape[:2])}"
            raise UserError(f"distillation: student and teacher give {shapes} (images, tokens); they must see the same patches")
        return self.weight * functional.l1_loss(self.projection(student).float(), teacher.detach().float())
