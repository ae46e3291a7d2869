"""The images that a trainer reads: augmented and shuffled for training, centre crops for everything else."""

from __future__ import annotations

from replicate.loaders import EVALUATION, Augmentation, open_loader
from replicate.loaders.base import BaseLoader
from replicate.trainers.batches import share_of
from replicate.trainers.context import RunContext

EVALUATION_BATCH = 256


def training_loader(context: RunContext, seed: int) -> BaseLoader:
    """The shuffled, augmented training images, in this process's shares of global batches."""
    run, session = context.run, context.session
    augmentation = Augmentation(
        crop=run.crop,
        scale=run.crop_scale,
        flip=run.flip,
        color_jitter=run.color_jitter,
        auto=getattr(run, "auto_augment", None),
        interpolation=run.interpolation,
    )
    return open_loader(
        getattr(run, "loader", None) or session.loader,
        context.data_folder / "train.beton",
        batch_size=share_of(run.batch_size, session),
        image_size=run.image_size,
        augmentation=augmentation,
        seed=seed,
        train=True,
        workers=session.workers,
        rank=session.rank,
        world_size=session.world_size,
        on_error=context.on_error,
        **_few_labels(context),
    )


def _few_labels(context: RunContext) -> dict[str, int | None]:
    """The labelled images of an evaluation, the same for all its seeds; a pre-training reads all images."""
    return {"per_class": getattr(context.run, "labels_per_class", None), "subset_seed": context.dataset.seed}


def validation_loader(context: RunContext, image_size: int) -> BaseLoader:
    """Centre crops of every validation image, each exactly once over all processes."""
    return whole_loader(context, "val", image_size, context.session.rank, context.session.world_size)


def labelled_loader(context: RunContext, image_size: int) -> BaseLoader:
    """Centre crops of the training images that an evaluation has labels of; every process reads them all."""
    return whole_loader(context, "train", image_size, **_few_labels(context))


def whole_loader(
    context: RunContext, split: str, image_size: int, rank: int = 0, world_size: int = 1, **few: int | None
) -> BaseLoader:
    """Centre crops of every image of a split in storage order, shared by `world_size` processes.

    `few` takes `per_class` and `subset_seed` of `replicate.loaders.open_loader`.
    """
    return open_loader(
        context.session.loader,
        context.data_folder / f"{split}.beton",
        batch_size=EVALUATION_BATCH,
        image_size=image_size,
        augmentation=EVALUATION,
        seed=0,
        train=False,
        workers=context.session.workers,
        rank=rank,
        world_size=world_size,
        on_error=context.on_error,
        **few,
    )
