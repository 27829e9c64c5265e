"""Reading a checkpoint file without running any code that it carries.

``torch.load(weights_only=True)`` builds tensors and plain containers only. Of classes beyond
torch's own list ``argparse.Namespace`` is let through: it has no code to run and many training
scripts store their options in one.
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslbench.checkpoint.errors import CheckpointError

ZIP_MAGIC, PICKLE_MAGIC, LFS_MAGIC = b"PK\x03\x04", b"\x80", b"version https://git-lfs"


def read_tensors(path: Path) -> Mapping[str, Any]:
    """Load the top-level mapping of a torch file.

    Raises:
        CheckpointError: what the file is instead, and what to do about it.
    """
    _refuse_what_is_no_torch_file(path, _head(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            top = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as a torch checkpoint ({reason}); it is cut short or damaged. "
            "Copy or download it again and compare its size with the original's"
        ) from None
    if not isinstance(top, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(top).__name__}, not a mapping of names to tensors. "
            "Save the network's state_dict() and pass that file"
        )
    return top


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; pass the checkpoint file inside it")
    try:
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path} is not readable: {error.strerror}") from None


def _refuse_what_is_no_torch_file(path: Path, head: bytes) -> None:
    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if head.startswith(LFS_MAGIC):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the checkpoint itself; run 'git lfs pull' there"
        )
    if head.startswith(ZIP_MAGIC) and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is cut short: a torch file whose end is missing. Copy or download it again "
            "and compare its size with the original's"
        )
    if head.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
        return
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not a checkpoint; the download link is dead")
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        raise CheckpointError(
            f"{path} is a text file, not a checkpoint; it begins {head[:40].decode('latin1')!r}"
        )
    raise CheckpointError(
        f"{path} is neither a torch file nor a pickle (it begins with bytes {head[:8]!r}); "
        "pass a file written by torch.save"
    )


def _refusal(path: Path, message: str) -> CheckpointError:
    found = re.search(r"GLOBAL (\S+) was not an allowed global", message)
    if found:
        return CheckpointError(
            f"{path} contains an object of class {found[1]}, and building it could run code, so "
            "the file was not opened. Where that class is installed, save the weights alone: "
            "torch.save({'state_dict': checkpoint['state_dict']}, 'weights.pth')"
        )
    return CheckpointError(
        f"{path} is a pickle that torch did not write (for instance Detectron2's or Caffe2's .pkl);"
        " only files written by torch.save are read. Pass the original checkpoint instead"
    )
