"""How a command ends: what a user can mend is one paragraph, not a traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sslbench.files import disk_errors_named

INTERRUPTED = 130  # what a shell reports after Ctrl-C

# For ``DataRoots.given``, the same in every command.
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="where data sets lie, or one of them: voc2007=DIR; may be repeated; "
        "default: DETECTRON2_DATASETS, else data"
    ),
]


@contextlib.contextmanager
def errors_in_one_paragraph() -> Iterator[None]:
    """Exit 1 with the message of a ``ValueError`` or a disk's error, 130 after an interruption."""
    try:
        with disk_errors_named():
            yield
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; run the same command to continue", file=sys.stderr)
        sys.exit(INTERRUPTED)


def require_place(option: str, path: Path, *, is_folder: bool = False) -> None:
    """Refuse a path that no file, or no folder, can be written to, before the work is done.

    Args:
        option: how it was given, as ``--out``.

    Raises:
        ValueError: something else is there already, or a file where a folder above it should be.
    """
    for above in (path, *path.parents) if is_folder else path.parents:
        if os.path.lexists(above) and not above.is_dir():
            raise ValueError(f"{option} {path}: {above} is there and no folder; give another place")
    if not is_folder and path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give the name of a file")
