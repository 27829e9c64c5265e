"""Run a pretraining once undisturbed and once killed often: kill_often.py CONFIG IMAGES OUT KILLS.

Every attempt is a process of its own, forked from this one so that torch is imported once. Prints
as JSON what each kill met.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pretrain import checkpoint, train
from pretrain.config import PretrainConfig
from pretrain.masks import parts, refresh
from pretrain.stage import Pretrain
from sslbench import stage
from sslbench.datasets import DataRoots

PHASES = (
    "start-up",
    "between",
    "warm-up step",
    "contrastive step",
    "step with clustering",
    "saving",
    "clustering masks",
    "writing masks",
    "finishing",
)
MOST_EVENTS = 5  # that an attempt is left to finish before the kill is drawn
SLACK = 3  # events at most until the kill: a machine that turns fast must not finish the run


class Watched:
    """What a forked run is doing and how much it has finished, in memory that both sides see."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    def tell(self, phase: str, events: int) -> None:
        """Note where the run stands."""
        self._memory[:] = struct.pack("qq", PHASES.index(phase), events)

    def now(self) -> tuple[str, int]:
        """The phase and the number of finished pieces of work."""
        phase, events = struct.unpack("qq", self._memory[:])
        return PHASES[phase], events

    def within(self, name: Callable[..., str], work: Callable) -> Callable:
        """Let ``work`` say when it begins and when it is done."""

        def told(*arguments, **settings):
            self.tell(name(*arguments), self.now()[1])
            result = work(*arguments, **settings)
            self.tell("between", self.now()[1] + 1)
            return result

        return told


def step_kind(run, batch, plan, epoch) -> str:
    """Name of the phase that a step belongs to."""
    if not plan.contrast:
        return "warm-up step"
    return "step with clustering" if plan.clustering_weight else "contrastive step"


def fork(cfg: PretrainConfig, images: Path, out: Path, watched: Watched) -> int:
    """Start or continue the run in a child; return its process id."""
    watched.tell("start-up", 0)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        train.Run.update = watched.within(step_kind, train.Run.update)
        for module, name, phase in (
            (checkpoint, "save", "saving"),
            (refresh, "cluster_group", "clustering masks"),
            (parts, "write_store", "writing masks"),
            (stage, "_finish", "finishing"),
        ):
            work = watched.within(lambda *_, phase=phase: phase, getattr(module, name))
            setattr(module, name, work)
        roots = DataRoots(images)
        stage.run_standalone(Pretrain(cfg), inputs={}, data=roots, out=out, device="cpu")
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's may run twice


def undisturbed(cfg: PretrainConfig, images: Path, out: Path) -> float:
    """Run to the end; return the seconds that a piece of work takes."""
    watched, began = Watched(), time.monotonic()
    child = fork(cfg, images, out, watched)
    assert os.waitpid(child, 0)[1] == 0, "the undisturbed run failed"
    return (time.monotonic() - began) / watched.now()[1]


def kill_once(child: int, watched: Watched, moments: random.Random, seconds: float) -> str:
    """Kill after a random number of pieces and a random time; return what was going on."""
    wanted = moments.randrange(MOST_EVENTS + 1)
    while watched.now()[1] < wanted:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "a run ended before its kill"
        time.sleep(seconds / 20)
    moment = time.monotonic() + moments.uniform(0, 2 * seconds)
    while time.monotonic() < moment and watched.now()[1] < wanted + SLACK:
        time.sleep(seconds / 50)
    os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    assert os.WIFSIGNALED(ended), "a run ended before its kill"
    return watched.now()[0]


def main(config: str, images: str, out: str, kills: str) -> None:
    """Make ``OUT/whole`` and ``OUT/killed``."""
    torch.set_num_threads(1)
    cfg = PretrainConfig.model_validate_json(Path(config).read_text())
    cfg = cfg.model_copy(update={"images": images})
    seconds = undisturbed(cfg, Path(images), Path(out) / "whole")
    moments, met = random.Random(0), []
    for _ in range(int(kills)):
        watched = Watched()
        child = fork(cfg, Path(images), Path(out) / "killed", watched)
        met.append(kill_once(child, watched, moments, seconds))
    undisturbed(cfg, Path(images), Path(out) / "killed")
    print(json.dumps(met))


if __name__ == "__main__":
    main(*sys.argv[1:])
