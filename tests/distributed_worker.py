"""One process of a distributed test: `python distributed_worker.py curve|accuracy|normalised OUT`.

Rank 0 writes OUT as JSON.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from test_engine import MemoryLoader, Regression, losses, run_of
from timm.layers import DropPath

from replicate.config import Machine
from replicate.config.backbones import vit_backbone
from replicate.loaders import data
from replicate.models.build import build_classifier
from replicate.pipeline.store import RunStore
from replicate.trainers.accuracy import accuracy
from replicate.trainers.batches import share_of
from replicate.trainers.loop import Trainer
from replicate.trainers.session import Session, open_session

IMAGES = 1003


class Shared(MemoryLoader):
    """This rank's share of every global batch."""

    def __init__(self, batch_size: int, session: Session) -> None:
        super().__init__(batch_size)
        self.held, self.session = share_of(batch_size, session), session

    def epoch(self, epoch):
        for batch in super().epoch(epoch):
            start = self.session.rank * self.held
            yield type(batch)(*(part[start : start + self.held] for part in batch))


def curve(session: Session, out: Path) -> list[float]:
    """The losses of 100 steps in float64; rows of 4 steps each."""
    return trained(Regression(dropout=0.0), run_of(epochs=25), session, out)


def trained(task: torch.nn.Module, run: SimpleNamespace, session: Session, out: Path) -> list[float]:
    optimizer = torch.optim.AdamW(task.parameters(), lr=1.0)
    store, loader = RunStore(out.stem, out.parent), Shared(run.batch_size, session)
    return losses(Trainer(task, optimizer, loader, run, session, store, seed=3, name="test").fit())


class Normalised(Regression):
    """Batch normalisation of vectors and of maps, dropped paths, and a probe's worth of gathered rows."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        double = {"dtype": torch.float64}
        maps = [
            torch.nn.Conv2d(3, 4, 1, **double),
            torch.nn.BatchNorm2d(4, **double),
            DropPath(0.5),
            torch.nn.Flatten(),
        ]
        vectors = [
            torch.nn.Linear(16, 5, **double),
            torch.nn.BatchNorm1d(5, **double),
            torch.nn.Linear(5, 3, **double),
        ]
        self.model, self.session = torch.nn.Sequential(*maps, *vectors), session

    def forward(self, images, labels, index, epoch, progress):
        logits = self.model(images.double() / 255)
        everyone = self.session.all_gather(index)
        return torch.nn.functional.cross_entropy(logits, labels), {"gathered": everyone.double().mean()}


def normalised(session: Session, out: Path) -> list[float]:
    """Losses, then running statistics, of a model with batch normalisation and dropped paths."""
    task = Normalised(session)
    history = trained(task, run_of(epochs=5), session, out)
    kept = {name: buffer for name, buffer in task.named_buffers() if "running" in name}
    return history + [float(value) for buffer in kept.values() for value in buffer]


def scored(session: Session, out: Path) -> dict[str, float]:
    """Accuracy of one fixed classifier over 1,003 images."""
    folder = out.parent / "data"
    if session.is_main and not (folder / "manifest.json").exists():
        data.write(
            data.DataSettings(train_images=24, val_images=IMAGES, image_size=24), folder, progress=False
        )
    session.barrier()
    torch.manual_seed(0)
    model = build_classifier(
        vit_backbone("vit", embed_dim=32, depth=2, num_heads=2, patch_size=8), 12, image_size=24
    )
    torch.nn.init.normal_(model.head.weight)
    return accuracy(model, SimpleNamespace(session=session, data_folder=folder, on_error="raise"), 24)


def main(what: str, out: Path) -> None:
    machine = Machine(device="cpu", workers=1, micro_batch=4 if what == "curve" else None)
    with open_session(machine, "float32", "beton") as session:
        found = {"curve": curve, "accuracy": scored, "normalised": normalised}[what](session, out)
        if session.is_main:
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
