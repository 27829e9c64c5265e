"""Weights & Biases as one more place for a run's scalars, where the environment asks for it.

    SSLBENCH_WANDB_PROJECT=cyborgs python -m pretrain ...

wandb's own variables hold as ever, such as WANDB_MODE=offline and WANDB_ENTITY.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VARIABLE = "SSLBENCH_WANDB_PROJECT"
INIT_SECONDS = 30  # that a service out of reach may keep a run waiting


class WandbError(ValueError):
    """W&B was asked for but is not installed."""


class WandbMirror:
    """One W&B run per run folder; a resume continues it.

    Nothing that W&B does can end the run: after its first failure it is left alone. Its run starts
    with the first row, so a stage without rows leaves none there.

    Args:
        say: where a failure is told, once.
    """

    def __init__(self, project: str, folder: Path, say: Callable[[str], None]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise WandbError(
                f"{VARIABLE}={project} asks for Weights & Biases, but the package wandb cannot be "
                f"imported ({error}): {sys.executable} -m pip install wandb, or unset the variable"
            ) from error
        self._wandb: Any = wandb
        self._run: Any = None
        self.project, self.folder, self.say = project, folder, say

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send one row."""
        self._guarded(lambda: self._started().log({"step": step, **values}))

    def close(self, *, failed: bool) -> None:
        """Wait until everything is sent, and say how the run ended."""
        if self._run is not None:
            self._guarded(lambda: self._run.finish(exit_code=int(failed)))
        self._run = self._wandb = None

    def _started(self) -> Any:
        if self._run is None:
            self._run = self._wandb.init(
                project=self.project,
                id=run_id(self.folder),
                name=self.folder.name,
                dir=str(self.folder),
                resume="allow",
                settings={"console": "off", "silent": True, "init_timeout": INIT_SECONDS},
            )
            # W&B's own counter only rises. Rows that a rewound run writes again would be refused;
            # with an axis of their own they fall on the first ones, of which they are copies.
            self._run.define_metric("*", step_metric="step")
        return self._run

    def _guarded(self, act: Callable[[], Any]) -> None:
        if self._wandb is None:
            return
        try:
            act()
        except Exception as error:  # of a service that the run does not need
            self._run = self._wandb = None
            first = (str(error) or type(error).__name__).splitlines()[0]
            self.say(f"Weights & Biases failed and gets no more rows: {first}")


def wanted_mirror(
    folder: Path, say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> WandbMirror | None:
    """Make the mirror that the environment asks for, if any."""
    project = environment.get(VARIABLE, "").strip()
    return WandbMirror(project, folder, say) if project else None


def run_id(folder: Path) -> str:
    """Name the W&B run of a folder: the same at every resume, another for every place."""
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', folder.name)[:48]}-{place}"
