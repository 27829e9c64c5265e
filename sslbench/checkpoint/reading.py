"""Reading a checkpoint file without running any code that it carries.

``torch.load(weights_only=True)`` builds tensors and plain containers only. Of classes beyond
torch's own list ``argparse.Namespace`` is let through: it has no code to run and many training
scripts store their options in one. What torch refuses is read by ``foreign``, on request.
"""

import argparse
import json
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslbench.checkpoint.errors import CheckpointError, short
from sslbench.checkpoint.foreign import NUMPY_MAGIC, ZIP_MAGIC, read_foreign
from sslbench.checkpoint.guard import require_sound_archive, require_sound_row
from sslbench.checkpoint.torch_pickles import is_row
from sslbench.checkpoint.unpickling import ForeignPickleError

OF_OBJECTS = b"'|O'"  # NumPy's name of the type in an array's header
torch.serialization.add_safe_globals([argparse.Namespace])  # as a context only since torch 2.5
PICKLE_MAGIC, LFS_MAGIC = b"\x80", b"version https://git-lfs"


def read_tensors(path: Path, allow_pickle: bool = False) -> Mapping[str, Any]:
    """Load the top-level mapping of a torch file, a safetensors file or, if allowed, any pickle.

    Args:
        allow_pickle: open what torch refuses too; nothing that it names is imported or called.

    Raises:
        CheckpointError: what the file is instead, and what to do about it.
    """
    head = _head(path)
    if _is_safetensors(path, head):
        return _read_safetensors(path)
    if not (allow_pickle and _may_be_old_pickle(path)):
        _refuse_what_is_no_torch_file(path, head)
    try:
        top = _read(path, head)
    except pickle.UnpicklingError as error:
        if not allow_pickle:
            raise _refusal(path, str(error)) from None
        top = _read_foreign(path)
    if not isinstance(top, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(top).__name__}, not a mapping of names to tensors. "
            "Save the network's state_dict() and pass that file"
        )
    return top


def _read(path: Path, head: bytes) -> Any:
    """What torch builds without calling anything."""
    is_archive = head.startswith(ZIP_MAGIC)
    if not is_archive and not is_row(memoryview(head)):
        raise pickle.UnpicklingError("of somebody else")
    try:
        (require_sound_archive if is_archive else require_sound_row)(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols
            # an archive is mapped: only the trunk's pages are read, not the optimiser's
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError:
        raise
    except ForeignPickleError as error:
        raise CheckpointError(
            f"{path} was not opened: {error}. Copy or download it again and compare its size with "
            "the original's; if that does not help, save the network's state_dict() with torch.save"
        ) from None
    except Exception as error:  # whatever a damaged file leads to
        raise _damaged(path, _first_line(error)) from None


def _may_be_old_pickle(path: Path) -> bool:
    """Protocols 0 and 1 begin with anything; every pickle ends with a full stop."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return file.read(1) == b"."


def _read_foreign(path: Path) -> Any:
    try:
        return read_foreign(path)
    except ForeignPickleError as error:
        raise CheckpointError(
            f"{path} is a pickle that cannot be read even so: {error}. Copy or download it again; "
            "if that does not help, save its tensors with torch.save where they can be loaded"
        ) from None


def _is_safetensors(path: Path, head: bytes) -> bool:
    """A length of eight bytes, then a table in JSON."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length <= path.stat().st_size


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            said = {key: _of_json(text) for key, text in (file.metadata() or {}).items()}
        return {**({"metadata": said} if said else {}), **load_file(path)}
    except Exception as error:  # whatever a damaged file leads to
        raise _damaged(path, _first_line(error)) from None


def _of_json(text: str) -> Any:
    """A value of a safetensors header, where all are texts: this suite's and others' are JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read as a checkpoint ({reason}); it is cut short or damaged. "
        "Copy or download it again and compare its size with the original's"
    )


def _head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; pass the checkpoint file inside it")
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise CheckpointError(f"{path} is a device or a pipe; pass a file with the checkpoint")
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; check its name and its folder") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} is not readable: {error.strerror}. Check its name and its rights, or copy it"
        ) from None


def _refuse_what_is_no_torch_file(path: Path, head: bytes) -> None:
    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if head.startswith(LFS_MAGIC):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the checkpoint itself; run 'git lfs pull' there"
        )
    if head.startswith(ZIP_MAGIC) and not _has_end_of_zip(path):
        raise CheckpointError(
            f"{path} is cut short: a torch file whose end is missing. Copy or download it again "
            "and compare its size with the original's"
        )
    if head.startswith(NUMPY_MAGIC) and OF_OBJECTS not in head:
        raise CheckpointError(
            f"{path} is a NumPy array of numbers, not a mapping of names to tensors. Pass the file "
            "with the whole state_dict()"
        )
    if head.startswith((ZIP_MAGIC, PICKLE_MAGIC, NUMPY_MAGIC)):
        return
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint; the download link is dead. Find another"
        )
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        raise CheckpointError(
            f"{path} is a text file, not a checkpoint; it begins {head[:40].decode('latin1')!r}. "
            "Pass the file that torch.save wrote, or download it again"
        )
    raise CheckpointError(
        f"{path} is neither a torch file nor a pickle (it begins with bytes {head[:8]!r}); "
        "pass a file written by torch.save or as safetensors"
    )


def _has_end_of_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError, OSError):
        return False


def _refusal(path: Path, message: str) -> CheckpointError:
    found = re.search(r"GLOBAL (\S+) was not an allowed global", message)
    what = (
        f"contains an object of class {short(found[1])[1:-1]}"
        if found
        else "is a pickle that torch did not write"
    )
    return CheckpointError(
        f"{path} {what}, and a pickle may run code, so the file was not opened. Its tensors can be "
        "taken out without calling anything that it names: python -m transfer convert "
        f"{shlex.quote(str(path))} --layout torchvision --allow-pickle"
    )
