"""Run a detection task as a command does: run_twin.py TASK.json DATA WEIGHTS OUT WORKERS [hook].

``hook`` is a statement that is executed first, to kill or to fail at a certain place.
"""

import sys
from pathlib import Path

from sslbench.command import errors_in_one_paragraph
from sslbench.datasets import DataRoots
from sslbench.stage import run_standalone
from transfer.detection import Detection
from transfer.task import TaskConfig


def main(task: str, data: str, weights: str, out: str, workers: str, hook: str = "") -> None:
    """Run; a user's errors end in one line."""
    exec(hook, {})
    stage = Detection(TaskConfig.model_validate_json(Path(task).read_text()))
    with errors_in_one_paragraph():
        run_standalone(
            stage,
            inputs={"weights": Path(weights)},
            data=DataRoots(Path(data)),
            out=Path(out),
            device="cpu",
            num_workers=int(workers),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
