"""A frozen probe of patch features: k-NN or a linear classifier, scored by mean IoU.

It asks the question of segmentation for seconds instead of hours: do a patch's features tell its class? A
patch has the class of most of its pixels in training; in testing scores are resized to every pixel. Nearest
neighbours vote as in the k-NN of whole images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from replicate.loaders.pixels import normalise
from replicate.models.build import build_classifier, tokens
from replicate.models.cpu import tune_for_cpu
from replicate.models.loading import load_encoder
from replicate.trainers.knn import knn_votes
from replicate.trainers.session import seed_everything
from replicate.transfer.ade import IGNORED, MaskImages
from replicate.transfer.crops import resize
from replicate.transfer.data import masked_images
from replicate.transfer.overlap import Overlap
from replicate.transfer.train import generator, start_weights
from replicate.transfer.upernet import resized

if TYPE_CHECKING:
    from replicate.trainers.checkpoints import Checkpoints
    from replicate.trainers.context import RunContext

MOST_PATCHES = 50_000
"""Labelled patches of the bank, drawn at random from all training images."""
PENALTY = 1e-3
"""Weight of the squared weights in the linear probe, on features of unit variance."""
STEPS = 100
QUERIES_AT_ONCE = 4096


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Probe one seed's encoder; `protocol` says how."""
    seed_everything(seed)
    encoder = frozen_encoder(context, seed)
    bank, labels = training_patches(encoder, context, seed)
    if context.run.protocol == "dense_knn":
        results = score(encoder, context, lambda queries: votes(queries, bank, labels, context.num_classes))
        return {"results": results, "history": []}
    probe = fit_linear(bank, labels, context.num_classes)
    return {"results": score(encoder, context, probe), "history": []}


def frozen_encoder(context: RunContext, seed: int) -> nn.Module:
    """The pre-trained encoder at the run's image size."""
    source, run = context.upstream_run, context.run
    model = build_classifier(source, context.num_classes, run.image_size)
    state, path = start_weights(context, seed)
    load_encoder(model, state, path, drop_blocks=source.drop_blocks, antialias=run.pos_embed_antialias)
    return tune_for_cpu(model.to(context.session.device)).eval().requires_grad_(False)


@torch.no_grad()
def patch_features(encoder: nn.Module, image: np.ndarray, context: RunContext) -> Tensor:
    """Features (h, w, C) of unit length of an image that is resized to the run's square."""
    size = (context.run.image_size,) * 2
    pixels = torch.from_numpy(np.ascontiguousarray(resize(image, size))).permute(2, 0, 1)[None]
    with context.session.autocast():
        found = tokens(encoder, normalise(pixels.to(context.session.device)))[0].float().cpu()
    side = round(len(found) ** 0.5)
    return nn.functional.normalize(found, dim=1).unflatten(0, (side, side))


def training_patches(encoder: nn.Module, context: RunContext, seed: int) -> tuple[Tensor, Tensor]:
    """(features (M, C), classes (M,)) of labelled training patches, at most `MOST_PATCHES`."""
    images = masked_images(context.manifest, "train")
    features, labels = [], []
    for index in _bar(images, context.name):
        image, mask = images.pair(index)
        found = patch_features(encoder, image, context)
        classes = patch_classes(mask, found.shape[:2], context.num_classes).flatten()
        known = classes != IGNORED
        features.append(found.flatten(0, 1)[known])
        labels.append(classes[known])
    bank, classes = torch.cat(features), torch.cat(labels)
    if len(bank) > MOST_PATCHES:
        chosen = torch.from_numpy(generator(seed, 24).choice(len(bank), MOST_PATCHES, replace=False))
        bank, classes = bank[chosen], classes[chosen]
    return bank, classes


def patch_classes(mask: np.ndarray, grid: tuple[int, int], classes: int) -> Tensor:
    """The class of most pixels of each patch, int64 (h, w); `IGNORED` where most are unlabelled."""
    labels = torch.from_numpy(mask).long()
    labels = torch.where(labels == IGNORED, classes, labels)
    shares = nn.functional.one_hot(labels, classes + 1).permute(2, 0, 1)[None].float()
    most = nn.functional.adaptive_avg_pool2d(shares, tuple(grid))[0].argmax(0)
    return torch.where(most == classes, IGNORED, most)


def votes(queries: Tensor, bank: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Votes (Q, classes) in parts that fit the memory."""
    parts = queries.split(QUERIES_AT_ONCE)
    return torch.cat([knn_votes(part, bank, labels, classes) for part in parts])


def fit_linear(features: Tensor, labels: Tensor, classes: int) -> nn.Module:
    """Multinomial logistic regression by L-BFGS on standardised features, which has one solution."""
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    layer = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    inputs = (features - mean) / deviation
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(inputs), labels) + PENALTY * layer.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)

    class Probe(nn.Module):
        @torch.no_grad()
        def forward(self, queries: Tensor) -> Tensor:
            return layer((queries - mean) / deviation)

    return Probe()


@torch.no_grad()
def score(encoder: nn.Module, context: RunContext, classify: Any) -> dict[str, float]:
    """miou, macc and aacc in percent over the validation images; scores are resized to every pixel."""
    images, session = masked_images(context.manifest, "val"), context.session
    found = Overlap(context.num_classes)
    for index in range(session.rank, len(images), session.world_size):
        image, mask = images.pair(index)
        patches = patch_features(encoder, image, context)
        scores = classify(patches.flatten(0, 1)).T.unflatten(1, patches.shape[:2])
        found.add(resized(scores[None], mask.shape)[0].argmax(0), torch.from_numpy(mask))
    return found.percent(session)


def _bar(images: MaskImages, name: str) -> tqdm:
    return tqdm(range(len(images)), desc=f"{name} patches", unit="image", mininterval=30, disable=None)
