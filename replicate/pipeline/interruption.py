"""Ctrl-C and SIGTERM end a command once, with one line, however many signals arrive.

A terminal sends Ctrl-C to every process of its group, and DVC, a shell or a seed's parent may pass it on: one
key gives several signals.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time

STATUS = 130
PARENT = "REPLICATE_PARENT"
"""Environment variable of a seed's process: the parent that started it, ends it, and prints its messages."""
PATIENCE = 3.0
"""Seconds in which further signals count as the first one; a later signal ends the process at once."""


class _Leaving:
    since: float | None = None
    told = False
    line = "interrupted"


def watch() -> None:
    """Let the first signal raise KeyboardInterrupt and the next ones do nothing.

    SIGINT stays ignored where it is ignored already, as in a shell's background jobs.
    """
    _Leaving.since, _Leaving.told = None, False
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    # The first function registered is the last one called.
    atexit.register(_end)


def ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end() -> None:
    """Run last of all, when nothing can catch a signal's exception any more.

    Python ends by SIGINT, whatever the exit status, when KeyboardInterrupt passed through `exec`, as in an
    import that makes a class.
    """
    ignore_ctrl_c()
    if begun() and _Leaving.told:
        sys.stdout.flush()
        os._exit(STATUS)


def begun() -> bool:
    """Whether a signal has come. Later failures, such as an import cut short, follow from it."""
    return _Leaving.since is not None


def would_say(line: str) -> None:
    """Set the line that `tell` prints."""
    _Leaving.line = line


def tell() -> None:
    """Print the line on stderr, once; a seed's process prints nothing."""
    if not _Leaving.told and os.environ.get(PARENT) != str(os.getppid()):
        # Not through sys.stderr: the signal may have interrupted it in the middle of writing.
        os.write(2, f"{_Leaving.line}\n".encode())
    _Leaving.told = True


def _interrupt(*_: object) -> None:
    now = time.monotonic()
    if _Leaving.since is None:
        _Leaving.since = now
        raise KeyboardInterrupt
    if now - _Leaving.since > PATIENCE:
        tell()
        os._exit(STATUS)
