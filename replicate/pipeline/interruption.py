"""Ctrl-C and SIGTERM end a command once: in one line, however many signals arrive while it leaves.

A terminal's Ctrl-C reaches every process of its group, and whoever started the command (DVC, a shell, the parent of a seed) may pass it on: one
key, several signals. Light to import: the command line begins with it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time

STATUS = 130
PARENT = "REPLICATE_PARENT"
"""In a seed's environment: the process that started it, ends it, and speaks for it."""
PATIENCE = 3.0
"""Seconds after the first signal in which others are taken for the same one. One that comes later is somebody who waits in vain."""


class _Leaving:
    since: float | None = None
    told = False
    line = "interrupted"


def watch() -> None:
    """From here on the first signal raises KeyboardInterrupt, and the next ones nothing.

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
    """The last thing to run in Python: there is nobody any more to catch a signal's exception.

    Where KeyboardInterrupt passed through `exec` of a text, as when a class is made while a module is imported, Python would now kill itself by
    SIGINT, whatever status was asked for.
    """
    ignore_ctrl_c()
    if begun() and _Leaving.told:
        sys.stdout.flush()
        os._exit(STATUS)


def begun() -> bool:
    """Whether a signal has come. What fails afterwards (an import cut short, a seed that ended) fails because of it."""
    return _Leaving.since is not None


def would_say(line: str) -> None:
    """What `tell` says of the command that runs."""
    _Leaving.line = line


def tell() -> None:
    """The line on stderr, once; nothing in a seed's process."""
    if not _Leaving.told and os.environ.get(PARENT) != str(os.getppid()):
        # Not through sys.stderr, which a signal's handler may have interrupted in the middle of writing.
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
