"""Unpack an archive of someone else's: no path leaves the folder, no link, no more bytes than were
announced.
"""

from __future__ import annotations

import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from replicate.errors import UserError
from replicate.fetch.download import fault

MOST_FILES = 1_000_000


class Member(NamedTuple):
    """A file in an archive: its path as stored, its size, and what opens it. `kind` is "file" or what else
    it is.
    """

    name: str
    size: int
    kind: str
    handle: tarfile.TarInfo | zipfile.ZipInfo


def unpack(archive: Path, folder: Path, most_bytes: int) -> Path:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive into `folder`, which is made; folders are implied by
    files.

    Raises UserError that names the archive and the member: a path outside the folder, a link or device,
    more than `most_bytes` or `MOST_FILES` in all, a damaged archive, a full disk.
    """
    try:
        with _opened(archive) as opened:
            members = list(_members(opened, archive, most_bytes))
            for member in members:
                place = folder / _safe(member, archive)
                place.parent.mkdir(parents=True, exist_ok=True)
                with _stream(opened, member) as stream, open(place, "wb") as file:
                    shutil.copyfileobj(stream, file, 1 << 18)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{archive}: a damaged archive ({error}); delete it and run the command again"
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder}: {fault(error)}; {archive} is kept, and the same command unpacks it"
        ) from None
    return folder


def _opened(archive: Path) -> tarfile.TarFile | zipfile.ZipFile:
    return zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive, "r:*")


def _members(opened: tarfile.TarFile | zipfile.ZipFile, archive: Path, most_bytes: int) -> Iterator[Member]:
    """The archive's files, each checked before any is written."""
    total = count = 0
    for member in map(_described, opened if isinstance(opened, tarfile.TarFile) else opened.infolist()):
        if member.kind == "folder":
            continue
        if member.kind != "file":
            raise UserError(f"{archive}: {member.name} is a {member.kind}; nothing was unpacked")
        _safe(member, archive)
        total, count = total + member.size, count + 1
        if total > most_bytes or count > MOST_FILES:
            limit = f"{most_bytes:,} bytes and {MOST_FILES:,} files"
            raise UserError(f"{archive}: unpacks to more than {limit}; nothing was unpacked")
        yield member


def _described(info: tarfile.TarInfo | zipfile.ZipInfo) -> Member:
    if isinstance(info, tarfile.TarInfo):
        kinds = {"file": info.isreg(), "folder": info.isdir(), "link": info.issym() or info.islnk()}
        kind = next((kind for kind, found in kinds.items() if found), "device")
        return Member(info.name, info.size, kind, info)
    link = (info.external_attr >> 16) & 0o170000 == 0o120000
    kind = "link" if link else "folder" if info.is_dir() else "file"
    return Member(info.filename, info.file_size, kind, info)


def _safe(member: Member, archive: Path) -> str:
    """The member's path. Refused, not mended: such a path is no accident."""
    path = posixpath.normpath(member.name)
    unsafe = path.startswith(("/", "..")) or "\\" in path or ":" in path.split("/")[0] or "\0" in path
    if unsafe or path == ".":
        raise UserError(f"{archive}: {member.name!r} would leave the folder; nothing was unpacked")
    return path


def _stream(opened: tarfile.TarFile | zipfile.ZipFile, member: Member) -> IO[bytes]:
    """The member's bytes: at most the size that was counted, whatever the compressed data hold."""
    if isinstance(opened, zipfile.ZipFile):
        return opened.open(member.handle)
    return opened.extractfile(member.handle)
