"""Training the tokenizer of the token target, or reading a released one: `python -m replicate tokenizer RUN`.

MAE (Table 1d) predicts the tokens of DALL-E's discrete VAE, trained on 250 million images: some 200 epochs of
ImageNet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from replicate.loaders.pixels import normalise
from replicate.models.tokenizer import Tokenizer, load_tokenizer
from replicate.models.weights import save_weights
from replicate.schedules.layer_decay import plain_groups
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.context import RunContext
from replicate.trainers.images import training_loader, validation_loader
from replicate.trainers.loop import Trainer, adamw
from replicate.trainers.session import seed_everything

if TYPE_CHECKING:
    from replicate.schedules.stages import View


class TokenizerTask(nn.Module):
    """The autoencoder's loss on a batch; reconstruction error and perplexity go to the history."""

    def __init__(self, model: Tokenizer) -> None:
        super().__init__()
        self.model = model

    def set_view(self, view: View) -> None:
        """Convolutions take images of any size."""

    def forward(
        self, images: Tensor, labels: Tensor, index: Tensor, epoch: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model(normalise(images))


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Train the tokenizer, or read it from the run's `file`, and write its weights.

    Results on the validation images: how many tokens they use, in effect (`perplexity`) and at all
    (`tokens_used`), and the mean squared error of the reconstruction (`val_mse`, in normalised space; absent
    for a released encoder).
    """
    run, session = context.run, context.session
    seed_everything(seed)
    if context.tokenizer is not None:
        model, history = load_tokenizer(context.tokenizer).to(session.device), []
    else:
        sizes = (run.patch_size, run.vocabulary, run.width, run.depth, run.code_width)
        model = Tokenizer(*sizes).to(session.device)
        history = _train(TokenizerTask(model), context, seed, checkpoints)
    model.eval()
    parameters = sum(p.numel() for p in model.parameters())
    results = usage(model, context) | {"vocabulary": model.vocabulary, "parameters": parameters}
    if session.is_main and isinstance(model, Tokenizer):
        model.save(checkpoints.weights_path)
    elif session.is_main:
        save_weights(model.state_dict(), checkpoints.weights_path, {"run": context.name})
    return {"results": results, "history": history}


def _train(
    task: TokenizerTask, context: RunContext, seed: int, checkpoints: Checkpoints
) -> list[dict[str, float]]:
    run, session = context.run, context.session
    optimizer = adamw(plain_groups(task, run.weight_decay), run, session.device)
    with training_loader(context, seed) as loader:
        return Trainer(task, optimizer, loader, run, session, checkpoints, seed, context.name).fit()


@torch.no_grad()
def usage(model: nn.Module, context: RunContext) -> dict[str, float]:
    """A tokenizer's scores on the validation images."""
    counts = torch.zeros(model.vocabulary, dtype=torch.float64, device=context.session.device)
    error = images_seen = 0.0
    with validation_loader(context, context.run.image_size) as loader:
        for raw, _, _ in loader.epoch(0):
            images = normalise(raw.to(context.session.device))
            ids = model.ids(images)
            counts += torch.bincount(ids.flatten(), minlength=model.vocabulary)
            images_seen += len(images)
            if isinstance(model, Tokenizer):
                grid = (images.shape[2] // model.stride, images.shape[3] // model.stride)
                error += float((model.reconstruct(ids, grid) - images).square().mean()) * len(images)
    *counted, error, images_seen = context.session.all_reduce_sum(*counts.tolist(), error, images_seen)
    shares = torch.tensor(counted, dtype=torch.float64) / sum(counted)
    perplexity, used = float(torch.special.entr(shares).sum().exp()), float((shares > 0).sum())
    found = {"perplexity": perplexity, "tokens_used": used}
    return found | ({"val_mse": error / images_seen} if isinstance(model, Tokenizer) else {})
