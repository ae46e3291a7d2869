"""What one process of a distributed test does: `python distributed_worker.py curve|accuracy OUT`, alone or under torchrun.

Rank 0 writes OUT as JSON.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from test_engine import MemoryLoader, Regression, run_of

from replicate.config import Machine
from replicate.config.backbones import vit_backbone
from replicate.loaders import data
from replicate.models.build import build_classifier
from replicate.pipeline.store import RunStore
from replicate.trainers.accuracy import accuracy
from replicate.trainers.engine import accumulation, fit
from replicate.trainers.session import Session, open_session

IMAGES = 1003


class Shared(MemoryLoader):
    """This rank's part of every global batch, micro-batch by micro-batch."""

    def __init__(self, batch_size: int, session: Session) -> None:
        super().__init__(batch_size * session.world_size)
        self.held, self.session = batch_size, session

    def epoch(self, epoch):
        for batch in super().epoch(epoch):
            start = self.session.rank * self.held
            yield type(batch)(*(part[start : start + self.held] for part in batch))


def curve(session: Session, out: Path) -> list[float]:
    """The losses of 100 steps in float64; rows of 4 steps each."""
    task = Regression()
    task.model[1].p = 0.0
    run = run_of(epochs=25)
    loader = Shared(accumulation(run.batch_size, session)[0], session)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1.0)
    history = fit(task, optimizer, loader, run, session, RunStore(out.stem, out.parent), seed=3, name="curve")
    return [row["loss"] for row in history]


def scored(session: Session, out: Path) -> dict[str, float]:
    """Accuracy of one fixed classifier over 1,003 images."""
    folder = out.parent / "data"
    if session.is_main and not (folder / "manifest.json").exists():
        data.write(data.DataSettings(train_images=24, val_images=IMAGES, image_size=24), folder, progress=False)
    session.barrier()
    torch.manual_seed(0)
    model = build_classifier(vit_backbone("vit", embed_dim=32, depth=2, num_heads=2, patch_size=8), 12, image_size=24)
    torch.nn.init.normal_(model.head.weight)
    return accuracy(model, SimpleNamespace(session=session, data_folder=folder, on_error="raise"), 24)


def main(what: str, out: Path) -> None:
    with open_session(Machine(device="cpu", workers=1, micro_batch=4 if what == "curve" else None), "float32", "beton") as session:
        found = {"curve": curve, "accuracy": scored}[what](session, out)
        if session.is_main:
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
