"""Detections of a test split, shared by the processes and continued where a run was killed."""

from collections.abc import Callable
from pathlib import Path

from sslbench import dist
from sslbench.datasets import Dataset
from sslbench.log import RunLog
from transfer.engines.base import Engine
from transfer.evaluators.parts import PredictionParts
from transfer.loader import TestSamples, loader


def predict(
    engine: Engine,
    test: Dataset,
    path: Path,
    log: RunLog,
    wait: Callable[[], None],
    num_workers: int = 0,
) -> None:
    """Write the detections of all test images to ``path``, in their order.

    Every image is predicted alone, so that neither the number of processes nor a resume changes a
    detection.

    Args:
        wait: for the other processes, however long they take.
    """
    parts = parts_of(path)
    done = parts.done()
    left = [index for index in range(len(test.records)) if index not in done]
    wait()  # everybody has seen what is left before anybody adds to it
    if done:
        log.info(f"{len(done)} of {len(test.records)} images are predicted already")
    _predict(engine, test, left[dist.rank() :: dist.world_size()], parts, log, num_workers)
    wait()
    if dist.is_main():
        parts.merge(len(test.records), path)
    wait()


def parts_of(path: Path) -> PredictionParts:
    """Where the predictions lie until they are complete."""
    return PredictionParts(path.with_suffix(".parts"))


def _predict(
    engine: Engine,
    test: Dataset,
    indices: list[int],
    parts: PredictionParts,
    log: RunLog,
    num_workers: int,
) -> None:
    """Predict some images and add them to this process's part."""
    from transfer.evaluators.predictions import rows_of

    engine.model.eval()
    samples = loader(
        TestSamples(test.records, engine.mapper), [[index] for index in indices], num_workers
    )
    with parts.writer() as part, log.progress(len(indices), "predict") as bar:
        for index, batch in zip(indices, samples, strict=True):
            (detections,) = engine.predict(batch)
            part.add(index, rows_of(test.records[index], detections, test))
            bar.advance(1)
