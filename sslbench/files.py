"""Files are written whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
SCRATCH = ".tmp"  # ends the name of what is not in place yet


class FileError(ValueError):
    """A file that cannot be read or written; the message names it and the way out."""


@contextlib.contextmanager
def disk_errors_named(place: Path | None = None) -> Iterator[None]:
    """Say what to do about a disk that is full or closed to us, in the block.

    Args:
        place: what is named where the system names nothing, as on a full disk.

    Raises:
        FileError: the disk is full or over quota, read-only, or another user's.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise FileError(
                f"no room to write {place or error.filename or 'on the disk'} ({error.strerror}); "
                "nothing half-written was kept. Free some space and run the same command again: "
                "it continues"
            ) from error
        if error.errno in NO_ACCESS:
            of_user = error.filename and not str(error.filename).endswith(SCRATCH)
            raise FileError(
                f"no access to {(error.filename if of_user else place) or 'a file'} "
                f"({error.strerror}): choose another folder, or change its rights"
            ) from error
        raise


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a scratch path in the same folder; move it onto ``final`` only if the block succeeds.

    Works for a file or a folder that does not exist yet. The old file is never removed first, so a
    kill at any instant leaves either the old or the new one.

    Raises:
        FileError: the disk is full or over quota, or must not be written to.
    """
    final = Path(final)
    scratch = final.with_name(f".{final.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{SCRATCH}")
    try:
        with disk_errors_named(final):
            yield scratch
            _sync(scratch)
            os.replace(scratch, final)
            _sync_folder(final.parent)
    finally:
        _discard(scratch)


def _sync(path: Path) -> None:
    if path.is_dir():
        for inner in path.rglob("*"):
            if inner.is_file():
                _sync(inner)
        _sync_folder(path)
        return
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(scratch: Path) -> None:
    if scratch.is_dir():
        import shutil

        shutil.rmtree(scratch, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # it must not hide why the file was not written
            scratch.unlink()


def sweep_scratch(folder: Path) -> None:
    """Remove what killed writers left behind in ``folder`` and below (``.name.PID-xxxx.tmp``)."""
    for left in folder.rglob(".*.tmp"):
        _discard(left)


def write_json(path: Path, payload: Any) -> None:
    """Write JSON atomically; keys keep their order."""
    with atomic_path(path) as scratch:
        scratch.write_text(json.dumps(payload, indent=2) + "\n", encoding="utf-8")


def write_torch(path: Path, payload: Any) -> None:
    """Write tensors and plain containers atomically, in torch's own format.

    Equal payloads give equal bytes, whether their strings were read from a file or not: a resumed
    run's checkpoint has the hash of an undisturbed one's.
    """
    import torch

    with atomic_path(path) as scratch, scratch.open("wb") as file:
        try:
            torch.save(interned(payload), file)
        except RuntimeError as error:
            # torch hides a full disk behind an error of its own zip writer
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def write_array(path: Path, array: "NDArray[Any]") -> None:
    """Write a .npy file. Not atomic: give a scratch path.

    Raises:
        OSError: the system's own; numpy's for a file on disk does not say that there is no room.
    """
    import numpy as np

    with path.open("wb") as file:
        plain: Any = SimpleNamespace(write=file.write)  # else numpy writes past Python
        np.save(plain, array)


def interned(value: Any) -> Any:
    """Make equal strings one object: pickle writes an object once and refers to it afterwards."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {interned(key): interned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(interned(item) for item in value)
    return value


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is named in the error."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not valid JSON ({error}); was it cut short?") from None


def file_sha256(path: Path) -> str:
    """Hash a file's bytes; a folder is hashed over its files' names and bytes."""
    if path.is_dir():
        inner = sorted(p for p in path.rglob("*") if p.is_file())
        lines = [f"{p.relative_to(path).as_posix()} {file_sha256(p)}" for p in inner]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
