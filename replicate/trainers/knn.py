"""k-nearest-neighbour classification of frozen features, without training (Wu et al. 2018, as in DINO)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from replicate.loaders.base import BaseLoader
from replicate.loaders.pixels import normalise
from replicate.models.cpu import tune_for_cpu
from replicate.models.weights import load_weights
from replicate.trainers.accuracy import TopK
from replicate.trainers.builders import build_classifier, load_encoder, pooled
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.context import RunContext
from replicate.trainers.images import labelled_loader, whole_loader

NEIGHBOURS = 20
TEMPERATURE = 0.07


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Score one seed's encoder: the 20 nearest by cosine similarity vote by exp(similarity / .07)."""
    model = build_classifier(context)
    path = context.upstream_weights(seed)
    load_encoder(context, model, load_weights(path), str(path))
    model = tune_for_cpu(model.to(context.session.device)).eval()
    size = context.run.image_size
    bank, bank_labels = features(model, context, labelled_loader(context, size))
    queries, labels = features(model, context, whole_loader(context, "val", size))
    found = TopK()
    found.add(knn_votes(queries, bank, bank_labels, context.num_classes), labels)
    return {"results": found.percent(context.session), "history": []}


@torch.no_grad()
def features(model: nn.Module, context: RunContext, images: BaseLoader) -> tuple[Tensor, Tensor]:
    """Unit-length features (M, C) and labels (M,) of a loader's images; closes the loader."""
    found, labels = [], []
    with images:
        for batch in images.epoch(0):
            with context.session.autocast():
                feature = pooled(model, normalise(batch.images.to(context.session.device)))
            found.append(nn.functional.normalize(feature.float(), dim=1))
            labels.append(batch.labels.to(context.session.device))
    return torch.cat(found), torch.cat(labels)


def knn_votes(
    queries: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int, neighbours: int = NEIGHBOURS
) -> Tensor:
    """Votes (Q, classes) of each query's nearest neighbours; features are unit vectors (Q, C) and (M, C)."""
    similarity, nearest = (queries @ bank.T).topk(min(neighbours, len(bank)), dim=1)
    votes = torch.zeros(len(queries), num_classes, device=queries.device)
    return votes.scatter_add_(1, bank_labels[nearest], (similarity / TEMPERATURE).exp())
