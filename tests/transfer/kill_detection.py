"""Run a detection once undisturbed and once killed in every phase: TASK.json DATA WEIGHTS OUT.

Every attempt is a process of its own, forked from this one so that torch is imported once. Each is
killed a random time after its phase began. Prints as JSON in which phase each kill fell, and the
processes that were left over.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from detectors import run_detection

import transfer.checkpoint
import transfer.evaluators
import transfer.pictures
from sslbench import results, stage
from sslbench.datasets import DataRoots
from transfer import trainer, watch
from transfer.evaluators import parts
from transfer.task import TaskConfig

PHASES: dict[str, tuple[object, str]] = {
    "training": (trainer.Trainer, "step"),
    "saving": (trainer, "save_checkpoint"),
    "watching": (watch.Watch, "__call__"),
    "statistics": (trainer.Trainer, "calibrate_norms"),
    "saving the detector": (transfer.checkpoint, "save_checkpoint"),
    "predicting": (parts.PartWriter, "add"),
    "merging": (parts.PredictionParts, "merge"),
    "evaluating": (transfer.evaluators, "evaluate"),
    "drawing": (transfer.pictures, "draw_detections"),
    "writing results": (results, "write_results"),
    "finishing": (stage, "_finish"),
}
AIMS = [*["training"] * 3, "saving", "watching", *["training"] * 2, "statistics", *PHASES][:-1]


class Attempt:
    """A forked run that kills itself ``delay`` seconds after phase ``aim`` began."""

    def __init__(self, folder: Path, aim: str = "", delay: float = 0.0) -> None:
        self.story = folder / "story.txt"  # every phase that began, with the time
        self.aim, self.delay = aim, delay
        self.story.write_text("")

    def run(self, work: Callable[[], object]) -> bool:
        """Run ``work`` in a child; return whether it was killed."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for phase, (owner, name) in PHASES.items():
                    setattr(owner, name, self.told(phase, getattr(owner, name)))
                work()
                code = 0
            finally:
                os._exit(code)  # nothing of the parent's may run twice
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0, "the run failed"
        return os.WIFSIGNALED(status)

    def told(self, phase: str, work: Callable) -> Callable:
        """Let ``work`` note when it begins and ends, and die within it where that is wanted."""

        def noted(*arguments, **settings):
            self.note(phase)
            if phase == self.aim:
                self.aim = ""
                kill = threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL))
                kill.start()
            try:
                return work(*arguments, **settings)
            finally:
                self.note("between")

        return noted

    def note(self, phase: str) -> None:
        """Add a line; one write, so that a kill leaves it whole."""
        with self.story.open("ab", buffering=0) as file:
            file.write(f"{time.monotonic()} {phase}\n".encode())

    def seconds(self) -> dict[str, float]:
        """Mean duration of each phase."""
        lines = [line.split(" ", 1) for line in self.story.read_text().splitlines()]
        spans: dict[str, list[float]] = {}
        for (began, phase), (end, _) in pairwise(lines):
            spans.setdefault(phase, []).append(float(end) - float(began))
        return {phase: sum(found) / len(found) for phase, found in spans.items()}

    def last(self) -> str:
        """The phase that it died in."""
        return self.story.read_text().splitlines()[-1].split(" ", 1)[1]


def left_over() -> list[int]:
    """Other processes of this session that are still alive after a few seconds."""
    end = time.monotonic() + 20
    while True:
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            pid = int(stat.parent.name)
            if int(session) == os.getsid(0) and pid != os.getpid() and state != "Z":
                alive.append(pid)
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.2)


def main(task: str, data: str, weights: str, out: str) -> None:
    """Make ``OUT/whole`` and ``OUT/killed``."""
    os.setsid()
    torch.set_num_threads(1)
    config, folder = TaskConfig.model_validate_json(Path(task).read_text()), Path(out)

    def work(name: str, workers: int) -> Callable[[], object]:
        where = (config, DataRoots(Path(data)), Path(weights), folder / name)
        return lambda: run_detection(*where, num_workers=workers)

    whole = Attempt(folder)
    assert not whole.run(work("whole", 0))
    seconds, moments, met = whole.seconds(), random.Random(0), []
    for number, aim in enumerate(AIMS):
        attempt = Attempt(folder, aim, moments.uniform(0, seconds[aim]))
        if attempt.run(work("killed", number % 2)):
            met.append(attempt.last())
    Attempt(folder).run(work("killed", 0))
    print(json.dumps({"met": met, "left": left_over()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
