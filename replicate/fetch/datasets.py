"""`python -m replicate data fetch NAME`: a public set as class folders in data/<name>/."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from replicate.config.datasets import HUB, PUBLIC, source_path
from replicate.errors import UserError
from replicate.fetch import layouts
from replicate.fetch.catalogue import CATALOGUE, PublicSet, RemoteFile
from replicate.fetch.download import download, fault, said_size, say, sum_of
from replicate.names import closest

DOWNLOADS = Path("data/downloads")


def listing() -> str:
    """What can be fetched: name, download size, licence, images, and whether it is here."""
    lines = []
    for name, public in CATALOGUE.items():
        size = said_size(public.bytes) if public.files else "local"
        here = "here" if source_path(name).is_dir() else ""
        lines.append(f"{name:<15}{size:>7}  {here:<5}{public.images}; {public.licence}")
    then = "Next: `python -m replicate data fetch NAME`, and NAME as a budget's `data.source` in budgets.yaml"
    return "\n".join([*lines, f"{HUB}OWNER/NAME   a data set of the Hugging Face hub", "", then])


def fetch(name: str, given: Path | None = None) -> Path:
    """The folder of a public set, fetched unless it is there. What is half done does not appear under its
    name.

    `given`: a folder with the set's files, or for imagenet-100 and an unpacked Tiny-ImageNet with the
    images; then nothing is downloaded. Raises UserError for an unknown name, and as `download` and `unpack`
    do.
    """
    if name not in CATALOGUE and not name.startswith(HUB):
        raise UserError(f"{name}: no public data set; known are {', '.join(PUBLIC)}{closest(name, PUBLIC)}")
    target = source_path(name)
    if target.is_dir():
        return target
    if name.startswith(HUB):
        from replicate.fetch.hub import fetch_dataset

        return _whole(target, lambda work, unfinished: fetch_dataset(name, work, unfinished))
    public = CATALOGUE[name]
    if given is not None and not given.is_dir():
        raise UserError(f"--from {given}: no such folder")
    if given is not None and (given / "train").is_dir():
        return _whole(target, lambda work, unfinished: _from_images(name, given, unfinished))
    if not public.files:
        command = f"python -m replicate data fetch {name} --from FOLDER"
        raise UserError(f"{name} is made from an ImageNet-1k of yours: `{command}`")
    _refuse_small_disk(target, public)
    files = [_available(file, public, given) for file in public.files]
    lay_out = getattr(layouts, public.layout)
    return _whole(target, lambda work, unfinished: lay_out(files, work, unfinished, public.unpacked))


def announce(name: str) -> None:
    """Say what is about to be fetched, how large it is and under which licence."""
    if name.startswith(HUB):
        say(f"{name}: fetching from the Hugging Face hub into {source_path(name)}")
        return
    public = CATALOGUE[name]
    size = f"{said_size(public.bytes)} to download" if public.files else "made from a local ImageNet"
    say(f"{public.title}: {size}, {public.images}; {public.licence}")


def _available(file: RemoteFile, public: PublicSet, given: Path | None) -> Path:
    """The file in the folder `given`, in Debian's package, or downloaded."""
    for folder in filter(None, (given, public.local)):
        path = Path(folder, file.name)
        if path.is_file() and sum_of(path) in file.sha256:
            return path
        if given is not None and folder == given:
            what = "another file than the one whose SHA-256 is known" if path.is_file() else "no such file"
            raise UserError(f"{path}: {what}; it is {file.url}")
    return download(file, DOWNLOADS)


def _from_images(name: str, given: Path, target: Path) -> None:
    if name == "imagenet-100":
        layouts.imagenet_100(given, target)
    elif name == "tiny-imagenet":
        layouts.tiny.lay_out(given, target)
    else:
        raise UserError(f"--from {given}: has images; {name} is made from {CATALOGUE[name].files[0].name}")


def _whole(target: Path, make: Callable[[Path, Path], None]) -> Path:
    """Fill a folder beside `target` and give it that name when all is there."""
    unfinished, work = (target.with_name(f".{target.name}.{part}") for part in ("unfinished", "work"))
    try:
        for folder in (unfinished, work):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        make(work, unfinished)
        unfinished.rename(target)
    except OSError as error:
        raise UserError(
            f"{target}: {fault(error)}; downloads are kept, and the same command continues"
        ) from None
    finally:
        for folder in (unfinished, work):
            shutil.rmtree(folder, ignore_errors=True)
    return target


def _refuse_small_disk(target: Path, public: PublicSet) -> None:
    """Before an hour of downloading, not after."""
    there = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(there).free, public.bytes + public.unpacked
    if free < needed:
        full = OSError(errno.ENOSPC, "")
        raise UserError(
            f"{target}: {fault(full)}: {said_size(free)} are free, {said_size(needed)} are needed"
        )
