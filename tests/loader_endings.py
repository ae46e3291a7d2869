"""Ways to leave an epoch early, run in a process of its own: `python tests/loader_endings.py KIND FOLDER`.

Prints one JSON object per case: what was raised, seconds from there to the consumer, and the threads and
child processes that are left. FOLDER holds train.beton with a seek index, or train/ with class folders for
kind folder. It needs its own process because a bus error ends it.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from replicate.loaders import Augmentation, open_loader
from replicate.loaders.base import BaseLoader

KIND, FOLDER = sys.argv[1], Path(sys.argv[2])
# On a busy machine, a thread that has finished its item needs time to end.
SECONDS_TO_END = 2.0
ITEM_SECONDS = 0.4
COLOURS = Augmentation(auto="three_augment")


def opened(path: Path, **options: Any) -> BaseLoader:
    defaults: dict[str, Any] = dict(
        batch_size=4,
        image_size=24,
        augmentation=Augmentation(),
        seed=0,
        train=True,
        workers=2,
        drop_last=False,
    )
    return open_loader(KIND, path, **(defaults | options))


def data() -> Path:
    return FOLDER / "train" if KIND == "folder" else FOLDER / "train.beton"


class Failing:
    """Works for `after` calls, then raises and records when, also in worker processes."""

    def __init__(self, function: Callable[..., Any], after: int) -> None:
        self.function, self.left, self.raised_at = function, after, multiprocessing.Value("d", 0.0)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            with self.raised_at.get_lock():
                self.raised_at.value = self.raised_at.value or time.monotonic()
            raise RuntimeError("boom")
        return self.function(*arguments, **options)


def again_if_late(case: Callable[[], None]) -> Callable[[], None]:
    """Run a case up to three times: on a busy machine a process may wait longer than two seconds."""

    @wraps(case)
    def repeated() -> None:
        for _ in range(3):
            case()
            if outcome.get("seconds", math.inf) < 2:
                return

    return repeated


def decoder_of(loader: BaseLoader) -> tuple[Any, str, int]:
    """The object that decodes, its function's name, and a number of calls in an epoch's first half."""
    if KIND == "ffcv":
        from replicate.loaders import ffcv

        return ffcv._WatchedEpoch, "run_pipeline", 3
    return (loader.source, "read", 5) if KIND == "folder" else (loader, "_decode", 9)


@again_if_late
def decode_fails() -> None:
    with opened(data()) as loader:
        list(loader.epoch(0))
        fails(loader, *decoder_of(loader))


@again_if_late
def augment_fails() -> None:
    with opened(data(), augmentation=COLOURS) as loader:
        fails(loader, loader, "augment", 1)


def fails(loader: BaseLoader, owner: Any, name: str, after: int) -> None:
    whole = getattr(owner, name)
    failing = Failing(whole, after)
    # A class needs a plain function here: an object would not receive the instance.
    setattr(owner, name, (lambda *arguments: failing(*arguments)) if isinstance(owner, type) else failing)
    try:
        for _ in loader.epoch(1):
            pass
    except RuntimeError as error:
        outcome["seconds"] = min(time.monotonic() - failing.raised_at.value, outcome.get("seconds", math.inf))
        outcome["error"] = str(error)
    finally:
        setattr(owner, name, whole)


def interrupted() -> None:
    def send() -> None:
        asked.wait()
        os.kill(os.getpid(), signal.SIGINT)

    asked, sender = threading.Event(), threading.Thread(target=send)
    sender.start()
    with opened(data()) as loader:
        try:
            for epoch in range(10_000):
                for number, _ in enumerate(loader.epoch(epoch)):
                    if number == 2:
                        asked.set()
        except KeyboardInterrupt as error:
            outcome["error"] = type(error).__name__
    sender.join()


@again_if_late
def interrupted_while_leaving() -> None:
    """Ctrl-C while the epoch waits for slow work in progress."""
    outcome.pop("seconds", None)
    with opened(data(), batch_size=1) as loader:
        owner, name, _ = decoder_of(loader)
        whole, in_work = getattr(owner, name), multiprocessing.Value("i", 0)

        def slowly(*arguments: Any) -> Any:
            with in_work.get_lock():
                in_work.value += 1
            time.sleep(ITEM_SECONDS)
            done = whole(*arguments)
            with in_work.get_lock():
                in_work.value -= 1
            return done

        def send() -> None:
            outcome["sent"] = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)

        setattr(owner, name, slowly)
        left, sender = False, threading.Timer(ITEM_SECONDS / 4, send)
        try:
            batches = loader.epoch(0)
            next(batches)
            sender.start()
            batches.close()
            left = True
            sender.join()
        except KeyboardInterrupt as error:
            outcome["error"], outcome["in work"] = type(error).__name__, in_work.value
            if not left:
                outcome["seconds"] = time.monotonic() - outcome.pop("sent")
        finally:
            setattr(owner, name, whole)
    sender.join()


def left_early() -> None:
    with opened(data()) as loader:
        for _ in loader.epoch(0):
            break
        outcome["error"] = "left"
        outcome["while open"] = [thread.name for thread in threads_left()]


@contextmanager
def copied() -> Iterator[Path]:
    folder = FOLDER / "copy"
    shutil.copytree(FOLDER, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def cut(suffix: str, **options: Any) -> None:
    with copied() as folder, opened(folder / "train.beton", **options) as loader:
        list(loader.epoch(0))
        batches = loader.epoch(1)
        next(batches)
        os.truncate(folder / f"train{suffix}", 3000)
        try:
            list(batches)
        except Exception as error:
            outcome["error"] = f"{type(error).__name__}: {error}"


def forget_size_check(loader: BaseLoader) -> None:
    """Simulate a cut right after the pipeline's thread has checked the size."""
    check, consumer = loader.reader.check_unchanged, threading.current_thread()
    loader.reader.check_unchanged = lambda: check() if threading.current_thread() is consumer else None


def cut_data() -> None:
    cut(".beton")


def cut_data_skipping() -> None:
    cut(".beton", on_error="skip")


def cut_index() -> None:
    cut(".seek")


def cut_after_the_look() -> None:
    """Kind ffcv: without the thread's check of the sizes, the decoder itself meets the end of both files."""
    for suffix in (".beton", ".seek"):
        with copied() as folder, opened(folder / "train.beton", batch_size=8) as loader:
            forget_size_check(loader)
            os.truncate(folder / f"train{suffix}", 3000)
            try:
                list(loader.epoch(0))
            except Exception as error:
                outcome["error"] = outcome.get("error", "") + f"{type(error).__name__}: {error}\n"


def threads_left() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


CASES = [decode_fails, augment_fails, interrupted, interrupted_while_leaving, left_early]
if KIND != "folder":
    CASES += [cut_data, cut_data_skipping]
if KIND != "folder" and (FOLDER / "train.seek").exists():
    CASES += [cut_index]
if KIND == "ffcv":
    CASES += [cut_after_the_look]

if __name__ == "__main__":
    # Background jobs of a shell ignore the signal, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for case in CASES:
        outcome: dict[str, Any] = {"case": case.__name__}
        case()
        until = time.monotonic() + SECONDS_TO_END
        while threads_left() and time.monotonic() < until:
            time.sleep(0.01)
        outcome["threads"] = [thread.name for thread in threads_left()]
        outcome["children"] = len(multiprocessing.active_children())
        print(json.dumps(outcome), flush=True)
