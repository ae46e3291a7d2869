"""Distillation beside the reconstruction: L = L_hog + sum_i |sigma(z_i^S) - z_i^T|_1 (FastMIM sec 5.6, Table
9).

The teacher is a larger, fine-tuned model of the same family (ViT-L for ViT-B, PVTv2-b5 for PVTv2-b2). The
paper does not define sigma, i or the layer. Here sigma is a learned projection from the student's width to
the teacher's, i runs over the tokens, and z is the encoders' output after the last norm. The sum is a mean
over tokens and channels: a sum over 49 tokens of 1024 channels would drown a HOG loss of about .05.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from replicate.errors import UserError
from replicate.models.prediction import Prediction


class Distillation(nn.Module):
    """The projection sigma and the loss term. Pre-training discards the projection at its end.

    teacher   uint8 images (N, 3, S, S) -> tokens (N, T, C_t) in raster order, without class token
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        teacher: Callable[[Tensor], Tensor] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(student_width, teacher_width)
        self.weight = weight
        # A tuple hides the teacher's weights from the optimizer and from checkpoints.
        self._teacher = (teacher,)

    def forward(
        self, prediction: Prediction, labels: Tensor, images: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term to add to the reconstruction loss, and scalars to log."""
        tokens = prediction.latent
        wanted = self._teacher[0](images)
        term = self.distance(tokens[:, -wanted.shape[1] :], wanted)
        return term, {"distillation": term.detach()}

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """student (N, T, C_s), teacher (N, T, C_t) -> the weighted distance, without a gradient for the
        teacher.

        Raises UserError for different numbers of tokens.
        """
        if student.shape[:2] != teacher.shape[:2]:
            shapes = f"{tuple(student.shape[:2])} and {tuple(teacher.shape[:2])} (images, tokens)"
            raise UserError(
                f"distillation: student and teacher give {shapes}; they must see the same patches"
            )
        return self.weight * functional.l1_loss(self.projection(student).float(), teacher.detach().float())


def build(width: int, num_classes: int, teacher: Callable[[Tensor], Tensor] | None) -> Distillation:
    """The term for an encoder of this width. Raises UserError without a teacher."""
    if teacher is None:
        raise UserError("objective distillation needs a teacher: state `teacher` in the run")
    return Distillation(width, teacher.num_features, teacher)
