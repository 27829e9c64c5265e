"""One process at a time works in a run folder; a dead owner's lock is taken over."""

import contextlib
import json
import os
import platform
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK_FILE = "lock.json"


class LockedError(ValueError):
    """Another live process works in the folder."""


@contextlib.contextmanager
def hold_lock(folder: Path) -> Iterator[str]:
    """Hold ``folder/lock.json`` for the block; yield the attempt id.

    Raises:
        LockedError: a live process on this host, or any process on another host, holds it.
    """
    path = folder / LOCK_FILE
    attempt = uuid.uuid4().hex
    _claim(path, attempt)
    try:
        yield attempt
    finally:
        if _owner(path).get("attempt") == attempt:
            path.unlink(missing_ok=True)


def _claim(path: Path, attempt: str) -> None:
    pid = os.getpid()
    mine = {"attempt": attempt, "host": platform.node(), "pid": pid, "born": born(pid)}
    scratch = path.with_name(f".{path.name}.{attempt}.tmp")
    scratch.write_text(json.dumps(mine))
    try:
        while True:
            try:
                os.link(
                    scratch, path
                )  # atomic, and fails where the lock exists; complete from the start
                return
            except FileExistsError:
                _break_stale(path)
    finally:
        scratch.unlink(missing_ok=True)


def _break_stale(path: Path) -> None:
    """Remove a dead owner's lock, or refuse. Renaming first lets only one of several rivals win."""
    owner = _owner(path)
    if not owner:
        return
    if owner.get("host") != platform.node():
        raise LockedError(
            f"{path.parent} is locked by pid {owner.get('pid')} on host {owner.get('host')}; "
            f"if that machine no longer runs it, delete {path} and run the same command again"
        )
    if _alive(owner):
        raise LockedError(
            f"{path.parent} is being worked on by pid {owner['pid']} on this machine; "
            "wait for it or stop it, then run the same command again"
        )
    grave = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, grave)
        if _owner(grave).get("attempt") != owner.get("attempt"):
            os.link(grave, path)  # a rival had already replaced it: give it back
        grave.unlink(missing_ok=True)


def live_owner(folder: Path) -> str:
    """Name the process that works in the folder now; empty if there is none.

    A lock of another host counts as live: from here nobody can tell.
    """
    owner = _owner(folder / LOCK_FILE)
    if not owner or (owner.get("host") == platform.node() and not _alive(owner)):
        return ""
    return f"pid {owner.get('pid')} on {owner.get('host')}"


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner: dict[str, Any] = json.loads(path.read_text())
        return owner
    except FileNotFoundError:
        return {}


def _alive(owner: dict[str, Any]) -> bool:
    """Whether the owner still runs; its birth time tells it from a later process with its pid."""
    pid = int(owner["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return bool(born(pid) == owner.get("born"))


def born(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty without /proc and for a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
