"""Run the launcher and SIGKILL this very process at a chosen instant.

    python tests/e2e/die.py KIND EVENT COUNT -- run SUITE --runs DIR ...

KIND is a stage kind, or a pattern of a stage's folder. EVENT is ``write:NAME`` (half-way through
the COUNT-th atomic write of a file or folder called NAME in it), ``scalars`` (after the COUNT-th
row of metrics), or ``call:module:function`` (at the COUNT-th call). Exits normally only if the
instant never came.
"""

import fnmatch
import importlib
import os
import signal
import sys
from pathlib import Path


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Kills at the last of ``count`` events."""

    def __init__(self, count: int) -> None:
        self.left = count

    def tick(self, before_death=lambda: None) -> None:
        self.left -= 1
        if self.left == 0:
            before_death()
            die()


def matches(pattern: str, path: Path) -> bool:
    """Whether the path lies in a stage of that kind (``svm``) or name (``fpn-*``)."""
    return any(fnmatch.fnmatch(part, pattern) for part in path.parts)


def tear(scratch: Path) -> None:
    """Leave half of what was written, as a kill inside the write would."""
    for path in [scratch, *scratch.rglob("*")] if scratch.is_dir() else [scratch]:
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def die_in_a_write(kind: str, name: str, count: int) -> None:
    files = importlib.import_module("sslbench.files")
    countdown, replace = Countdown(count), os.replace

    def watched(source, target):
        target = Path(target)
        if matches(kind, target) and fnmatch.fnmatch(target.name, name):
            countdown.tick(lambda: tear(Path(source)))
        replace(source, target)

    files.os = type("os", (), {**vars(os), "replace": staticmethod(watched)})


def die_after_metrics(kind: str, count: int) -> None:
    log = importlib.import_module("sslbench.log")
    countdown, scalars = Countdown(count), log.RunLog.scalars

    def watched(self, step, **values):
        scalars(self, step, **values)
        if matches(kind, self.folder):
            countdown.tick()

    log.RunLog.scalars = watched


def die_at_a_call(reference: str, count: int) -> None:
    module_name, _, name = reference.partition(":")
    module = importlib.import_module(module_name)
    countdown, original = Countdown(count), getattr(module, name)

    def watched(*arguments, **keywords):
        countdown.tick()
        return original(*arguments, **keywords)

    setattr(module, name, watched)


def main() -> None:
    kind, event, count, dashes, *arguments = sys.argv[1:]
    assert dashes == "--"
    what, _, detail = event.partition(":")
    if what == "write":
        die_in_a_write(kind, detail, int(count))
    elif what == "scalars":
        die_after_metrics(kind, int(count))
    else:
        die_at_a_call(detail, int(count))
    sys.argv = ["launch", *arguments]
    importlib.import_module("launch.__main__").main()


if __name__ == "__main__":
    main()
