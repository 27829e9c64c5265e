"""What a run says: log.txt, metrics.jsonl, TensorBoard, W&B where asked for, and its progress.

Progress is a bar on a terminal and a line every ten seconds elsewhere.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from sslbench import dist
from sslbench.files import atomic_path
from sslbench.wandb_mirror import WandbMirror, wanted_mirror

HEARTBEAT_SECONDS = 10.0


class Progress:
    """Position in a known amount of work, with rate and time left."""

    def __init__(self, total: int, label: str, initial: int = 0) -> None:
        self.total, self.label = total, label
        self.done = self._start = initial
        self._began = time.monotonic()
        self.shown = ""

    def advance(self, count: int = 1, **shown: float | str) -> None:
        """Move on by ``count`` and show a few values beside the bar."""
        self.done += count
        if shown:
            self.shown = "  ".join(f"{k} {_brief(v)}" for k, v in shown.items())
        self._draw()

    def seconds_left(self) -> float | None:
        """Estimate from this process's own rate; None before the first advance."""
        made = self.done - self._start
        if made <= 0:
            return None
        return (time.monotonic() - self._began) / made * (self.total - self.done)

    def line(self) -> str:
        """One line that says where the work stands."""
        left = self.seconds_left()
        eta = "" if left is None else f"  {_clock(left)} left"
        return f"{self.label} {self.done}/{self.total}{eta}  {self.shown}".rstrip()

    def _draw(self) -> None:
        """Show the state; the plain object is silent (ranks above 0)."""

    def close(self) -> None:
        """Leave the terminal clean."""


class _Bar(Progress):
    """A rich bar on a terminal."""

    def __init__(self, total: int, label: str, initial: int = 0) -> None:
        super().__init__(total, label, initial)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        # on stderr, which was asked: stdout may be a pipe
        console = Console(stderr=True)
        self._rich = RichProgress(*columns, console=console, transient=True, refresh_per_second=4)
        self._task = self._rich.add_task(label, total=total, completed=initial, shown="")
        self._rich.start()

    def _draw(self) -> None:
        self._rich.update(self._task, completed=self.done, shown=self.shown)

    def close(self) -> None:
        self._rich.stop()


class _Heartbeat(Progress):
    """A line now and then, for logs."""

    def __init__(self, total: int, label: str, initial: int = 0) -> None:
        super().__init__(total, label, initial)
        self._last = time.monotonic()

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._last >= HEARTBEAT_SECONDS:
            self._last = now
            _say(self.line())


def _progress(total: int, label: str, initial: int = 0) -> Progress:
    if not dist.is_main():
        return Progress(total, label, initial)
    return (_Bar if sys.stderr.isatty() else _Heartbeat)(total, label, initial)


def info(text: str) -> None:
    """Say one line about work that has no run folder, on rank 0."""
    if dist.is_main():
        _say(text)


@contextlib.contextmanager
def progress(total: int, label: str, initial: int = 0) -> Iterator[Progress]:
    """Show progress for work that has no run folder."""
    bar = _progress(total, label, initial)
    try:
        yield bar
    finally:
        bar.close()


class RunLog:
    """Writer of one run folder. Only rank 0 writes; the other ranks' calls do nothing.

    Args:
        folder: the run folder; exists.

    Raises:
        WandbError: W&B is asked for but not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self._text: TextIO | None = None
        self._metrics: TextIO | None = None
        self._board: Any = None
        self._mirror: WandbMirror | None = None
        if dist.is_main():
            self._mirror = wanted_mirror(folder, self.info)
            _end_with_newline(self.metrics_path)
            self._text = (folder / "log.txt").open("a", encoding="utf-8")
            self._metrics = self.metrics_path.open("a", encoding="utf-8")

    def info(self, text: str) -> None:
        """Say one line on the console and keep it in log.txt."""
        if self._text is not None:
            self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
            self._text.flush()
            _say(text)

    def scalars(self, step: int, **values: float) -> None:
        """Append one row to metrics.jsonl and TensorBoard, and to W&B where that is asked for.

        Args:
            step: counts from 0; a resumed run rewinds to its own step first.
        """
        if self._metrics is None:
            return
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._writer().add_scalar(name, value, step)
        if self._mirror is not None:
            self._mirror.scalars(step, values)

    def _writer(self) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        return self._board

    def rewind(self, step: int) -> None:
        """Forget rows at ``step`` and later: a resume writes them again."""
        if self._metrics is None:
            return
        self._metrics.close()
        kept = [row for row in read_metrics(self.metrics_path) if row["step"] < step]
        with atomic_path(self.metrics_path) as scratch:
            scratch.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._metrics = self.metrics_path.open("a", encoding="utf-8")
        if step > 0 and (self.folder / "tensorboard").exists():
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)

    @contextlib.contextmanager
    def progress(self, total: int, label: str, initial: int = 0) -> Iterator[Progress]:
        """Show progress: a bar on a terminal, a line every ten seconds otherwise."""
        with progress(total, label, initial) as bar:
            yield bar

    def close(self, *, failed: bool = False) -> None:
        """Flush and close every file."""
        if self._mirror is not None:
            self._mirror.close(failed=failed)
        for file in (self._text, self._metrics, self._board):
            if file is not None:
                file.close()
        self._text = self._metrics = self._board = self._mirror = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def _end_with_newline(path: Path) -> None:
    """Keep a half line left by a kill from swallowing the next row."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _brief(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def only_errors(package: str) -> Iterator[None]:
    """Silence what a chatty package logs within the block, but for errors."""
    logger = logging.getLogger(package)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
