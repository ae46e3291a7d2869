"""Mask R-CNN on a pre-trained encoder, put together from torchvision's detection package.

Anchors, coder, region proposals and losses are torchvision's. Ours are the encoder's maps, sampling that does
not depend on the number of processes, and pooling that is aligned (He et al. 2017; torchvision's is not). A
last step undoes torchvision's projection of masks exactly. Heads are MAE Table 4's: two convolutions in the
RPN, four convolutions and one linear layer for boxes, four convolutions for masks, with norms. The last
layers have no outputs for the background's boxes and masks, as published.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from replicate.config.backbones import is_plain_vit, vit_backbone
from replicate.config.hierarchies import hierarchy, is_hierarchy
from replicate.errors import UserError
from replicate.loaders.pixels import IMAGENET_MEAN, IMAGENET_STD
from replicate.models import build
from replicate.models.backbones import build_backbone
from replicate.models.vit import ViT
from replicate.schedules.layer_decay import decayed_groups
from replicate.transfer import operators  # noqa: F401  (before torchvision's detection)
from replicate.transfer.pyramids import LEVELS, NORMS, SimplePyramid, StagesFPN, TapsFPN
from replicate.transfer.sampling import PlacedSampler
from replicate.transfer.taps import below_head, stage_numbers
from replicate.transfer.windowed import WindowedViT

from torchvision.models.detection import MaskRCNN  # isort: skip
from torchvision.models.detection.anchor_utils import AnchorGenerator  # isort: skip
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead  # isort: skip
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor  # isort: skip
from torchvision.models.detection.rpn import RPNHead  # isort: skip
from torchvision.models.detection.transform import GeneralizedRCNNTransform  # isort: skip
from torchvision.ops import MultiScaleRoIAlign  # isort: skip

if TYPE_CHECKING:
    from replicate.config import PretrainRun
    from replicate.config.dense import DetectRun

BOX_BINS, MASK_BINS = 7, 14
ANCHOR_STRIDES = 8
"""Side of a level's anchors over its stride: 32 to 512 pixels at strides of 4 to 64."""
ASPECTS = (0.5, 1.0, 2.0)


class Stages(nn.Module):
    """A hierarchy's encoder: (N, 3, H, W) -> the maps of its four stages. It takes images of one size."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        if hasattr(backbone, "norm"):
            backbone.norm = nn.Identity()
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.backbone.stage_maps(images)[-4:]

    def take(self, source: nn.Module) -> None:
        """Copy the encoder of a loaded classifier of the same numbers."""
        theirs, ours = source.state_dict(), self.backbone.state_dict()
        self.backbone.load_state_dict({name: theirs[name] for name in ours})


class Pyramid(nn.Module):
    """Encoder and neck: normalised images (N, 3, S, S) -> maps of `out_channels` at `strides`, and "pool"."""

    def __init__(self, encoder: nn.Module, neck: nn.Module, width: int, strides: tuple[float, ...]) -> None:
        super().__init__()
        self.encoder, self.neck = encoder, neck
        self.out_channels, self.strides = width, strides

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.neck(self.encoder(images))


class AlignedPooler(MultiScaleRoIAlign):
    """Pools each region from the level of its size, aligned and adaptively sampled (detectron2's RoIAlignV2).

    A region of 14 cells of a level, or up to twice as long, belongs to this level: 224 pixels to stride 16
    (Lin et al. 2017, Eq. 1).
    """

    def __init__(self, strides: tuple[float, ...], bins: int) -> None:
        super().__init__(list(LEVELS), bins, 0)
        self.strides = strides

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        numbers = [torch.full_like(box[:, :1], number) for number, box in enumerate(boxes)]
        rois = torch.cat([torch.cat(numbers), torch.cat(boxes)], 1)
        sides = (rois[:, 3:] - rois[:, 1:3]).prod(1).clamp(min=0).sqrt()
        levels = (sides / (14 * self.strides[0])).log2().add(1e-6).floor().clamp(0, len(LEVELS) - 1)
        maps = [x[level] for level in LEVELS]
        result = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = torch.nonzero(levels == level)[:, 0]
            arguments = rois[chosen].to(features.dtype), 1 / stride, *self.output_size, 0, True
            pooled = torch.ops.torchvision.roi_align(features, *arguments)
            result[chosen] = pooled.to(result.dtype)
        return result


class BoxPredictor(nn.Module):
    """Scores of the background and every class, and box deltas of every class; the background's are zero."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), functional.pad(self.bbox_pred(features), (4, 0))


class MaskPredictor(MaskRCNNPredictor):
    """torchvision's, for every class; the background's logits are zero."""

    def forward(self, features: Tensor) -> Tensor:
        return functional.pad(super().forward(features), (0, 0, 0, 0, 1, 0))


class Images(GeneralizedRCNNTransform):
    """Normalises images and pads them to a square. Boxes stay in its pixels, and masks in their boxes."""

    def __init__(self, image_size: int) -> None:
        super().__init__(
            image_size, image_size, list(IMAGENET_MEAN), list(IMAGENET_STD), size_divisible=image_size
        )

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        return result


class Detector(MaskRCNN):
    """torchvision's Mask R-CNN on a `Pyramid`, for square images of one size.

    In training: (images as float (3, S, S) in 0..1, targets) -> losses by name. In evaluation, images of at
    most S pixels a side give boxes in their pixels, labels from 1, scores, and masks (n, 1, 28, 28) as
    probabilities within the boxes.
    """

    def __init__(self, pyramid: Pyramid, run: DetectRun, num_classes: int) -> None:
        width, norm, strides = run.head_width, NORMS[run.norm], pyramid.strides
        before_train, before_test, after = run.proposals
        sides = [ANCHOR_STRIDES * stride for stride in (*strides, 2 * strides[-1])]
        anchors = AnchorGenerator(tuple((side,) for side in sides), (ASPECTS,) * len(sides))
        super().__init__(
            pyramid,
            rpn_anchor_generator=anchors,
            rpn_head=RPNHead(width, len(ASPECTS), conv_depth=2),
            rpn_pre_nms_top_n_train=before_train,
            rpn_pre_nms_top_n_test=before_test,
            rpn_post_nms_top_n_train=after,
            rpn_post_nms_top_n_test=after,
            rpn_batch_size_per_image=run.rpn_batch,
            box_roi_pool=AlignedPooler(strides, BOX_BINS),
            box_head=FastRCNNConvFCHead((width, BOX_BINS, BOX_BINS), [width] * 4, [run.fc_width], norm),
            box_predictor=BoxPredictor(run.fc_width, num_classes),
            box_batch_size_per_image=run.roi_batch,
            mask_roi_pool=AlignedPooler(strides, MASK_BINS),
            mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm),
            mask_predictor=MaskPredictor(width, width, num_classes),
        )
        self.image_size, self.test_size, self.window = run.image_size, run.test_size, run.window
        self.num_classes = num_classes
        self.transform = Images(run.image_size)
        for part in (self.rpn, self.roi_heads):
            known = part.fg_bg_sampler
            part.fg_bg_sampler = PlacedSampler(known.batch_size_per_image, known.positive_fraction)

    def sampled(self) -> dict[str, int]:
        """Over how many anchors or regions each loss of the last step is a mean."""
        anchors, regions = self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler
        counts = dict.fromkeys(("loss_objectness", "loss_rpn_box_reg"), anchors.taken)
        counts |= dict.fromkeys(("loss_classifier", "loss_box_reg"), regions.taken)
        return counts | {"loss_mask": regions.positives}

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """AdamW's groups with their `lr_scale`. Pyramid and heads are a level above the encoder's last."""
        encoder = self.backbone.encoder
        encoder = encoder.backbone if isinstance(encoder, Stages) else encoder
        groups = below_head(decayed_groups(encoder, weight_decay, layer_decay), layer_decay)
        known = {id(parameter) for group in groups for parameter in group["params"]}
        new = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        for decays in (True, False):
            parameters = [p for p in new if (p.ndim > 1) == decays]
            groups.append({"lr_scale": 1.0, "weight_decay": weight_decay * decays, "params": parameters})
        return groups


def build_detector(pretrained: PretrainRun, run: DetectRun, num_classes: int) -> Detector:
    """The untrained detector on a pre-training's backbone. `num_classes` leaves out the background.

    Raises UserError for a neck that the backbone does not fit.
    """
    name, kwargs = pretrained.backbone, dict(pretrained.backbone_kwargs)
    vit = is_plain_vit(name, kwargs)
    if vit == (run.neck == "fpn"):
        wanted = "taps_fpn or simple_fpn" if vit else "fpn"
        raise UserError(f"neck {run.neck!r} does not fit backbone {name!r}; choose {wanted}")
    pyramid = _vit_pyramid(name, kwargs, run) if vit else _stages_pyramid(pretrained, run)
    return Detector(pyramid, run, num_classes)


def _vit_pyramid(name: str, kwargs: dict[str, Any], run: DetectRun) -> Pyramid:
    if run.window is None:
        raise UserError("window: a detector on a plain ViT needs the tokens a side of its attention windows")
    numbers = vit_backbone(name, **kwargs).kwargs
    vit = ViT(run.image_size, **numbers, drop_path=run.drop_path)
    simple = run.neck == "simple_fpn"
    encoder = WindowedViT(vit, run.window, "decomposed" if simple else "shared")
    neck = (SimplePyramid if simple else TapsFPN)(encoder.channels, run.head_width, run.norm)
    patch = numbers["patch_size"]
    return Pyramid(encoder, neck, run.head_width, (patch / 4, patch / 2, patch, patch * 2))


def _stages_pyramid(pretrained: PretrainRun, run: DetectRun) -> Pyramid:
    if not is_hierarchy(pretrained.backbone):
        wanted = "a detector takes a plain ViT or a hierarchy of FastMIM Table 4"
        raise UserError(f"backbone {pretrained.backbone!r}: {wanted}")
    name, kwargs = pretrained.backbone, stage_numbers(pretrained, run.image_size, run.window)
    numbers = hierarchy(name, **kwargs)
    encoder = Stages(build_backbone(name, run.image_size, drop_path=run.drop_path, **kwargs))
    neck = StagesFPN(numbers.dims, run.head_width, run.norm)
    return Pyramid(encoder, neck, run.head_width, tuple(numbers.patch_size * 2**stage for stage in range(4)))


def load_encoder(
    model: Detector,
    pretrained: PretrainRun,
    state: dict[str, Tensor],
    path: str = "the checkpoint",
    antialias: bool = True,
) -> None:
    """Load a pre-training's or a classifier's encoder; pyramid, heads and relative positions stay new.

    Position tables are resampled to the detector's image size. Raises UserError, naming `path`, for another
    model's checkpoint.
    """
    size = model.image_size
    if is_plain_vit(pretrained.backbone, pretrained.backbone_kwargs):
        source = build.build_classifier(pretrained, 1, size)
    else:
        numbers = stage_numbers(pretrained, size, model.window)
        source = build_backbone(pretrained.backbone, size, 1, **numbers)
    build.load_encoder(source, state, path, drop_blocks=pretrained.drop_blocks, antialias=antialias)
    model.backbone.encoder.take(source)
