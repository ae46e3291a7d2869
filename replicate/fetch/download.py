"""One file from an address: with a progress bar, continued after a break, checked by its SHA-256."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from replicate.errors import UserError
from replicate.fetch.catalogue import RemoteFile

TRIES = 4
"""Connections that may break without a byte in between before a download gives up."""
CHUNK = 1 << 16
"""Bytes that are written together; a break loses less than that."""
TIMEOUT = 30
"""Seconds without an answer."""


def download(file: RemoteFile, folder: Path) -> Path:
    """The file in `folder`, downloaded unless it is there and whole.

    What arrived before a break stays in `<name>.part`, and the next call continues it. Raises UserError, in
    one line that says what to fetch by hand and where to put it, when the server cannot be reached or sends
    something else, and when the disk is full.
    """
    path = folder / file.name
    if path.exists():
        if sum_of(path) not in file.sha256:
            raise UserError(
                f"{path}: another file than {file.url}, by its SHA-256; delete it, or fetch it again"
            )
        return path
    return fetch_url(file.url, path, file.sha256, file.bytes)


def fetch_url(url: str, path: Path, sha256: tuple[str, ...] = (), size: int | None = None) -> Path:
    """An address to a file. `sha256`: the sums that are accepted; () takes the file as it comes."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    known = "sha256:" + next(iter(sha256)) if len(sha256) == 1 else None
    by_hand = f"fetch {url} by hand, put it at {path}, and run the same command again"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pooch.retrieve(url, known, path.name, path.parent, downloader=Continued(path, size))
        if sha256 and known is None and sum_of(path) not in sha256:
            raise ValueError
    except requests.RequestException as error:
        reason = _reason(error)
        raise UserError(f"{url}: cannot be downloaded ({reason}); {by_hand}") from None
    except ValueError:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{url}: another file than the one whose SHA-256 is known; deleted. Or {by_hand}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: {fault(error)}; what arrived is kept, and the same command continues"
        ) from None
    return path


class Continued:
    """A downloader for pooch that keeps what arrived in `<path>.part` and asks for the rest."""

    def __init__(self, path: Path, size: int | None) -> None:
        self.path, self.size = path, size
        self.part = path.with_name(path.name + ".part")

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        import requests

        left = TRIES
        with tqdm(desc=self.path.name, total=self.size, unit="B", unit_scale=True, disable=None) as bar:
            while True:
                before = self._arrived()
                try:
                    self._receive(url, bar)
                    break
                except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                    left = TRIES if self._arrived() > before else left - 1
                    if left < 1:
                        raise
        os.replace(self.part, output_file)

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _receive(self, url: str, bar: tqdm) -> None:
        """Append what is missing. Begins anew where the server sends the whole file or has no such range."""
        import requests

        have = self._arrived()
        if have and have == self.size:
            return
        # A server that compresses on the way would make byte ranges meaningless.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:
                self.part.unlink()
                return self._receive(url, bar)
            answer.raise_for_status()
            continued = answer.status_code == 206
            have = have if continued else 0
            length = answer.headers.get("content-length")
            bar.total = have + int(length) if length else self.size
            bar.n = have
            with open(self.part, "ab" if continued else "wb") as file:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            if length and self._arrived() < have + int(length):
                raise requests.ConnectionError("the connection closed before the end")


def said_size(size: int) -> str:
    """Such as "99 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def say(text: str) -> None:
    """A line on stderr, where progress goes."""
    print(text, file=sys.stderr, flush=True)


def fault(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "the disk is full" if full else f"cannot be written ({error.strerror or error})"


def _reason(error: Exception) -> str:
    """What happened, without the chain of a library's objects."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the server answers {status}"
    broken = "ChunkedEncodingError" in type(error).__name__ or "closed before" in str(error)
    return "the connection broke" if broken else "no connection"


def sum_of(path: Path) -> str:
    import pooch

    with contextlib.suppress(OSError):
        return pooch.file_hash(str(path), alg="sha256")
    return ""
