"""Which images make up which batch: a pure function of seed and iteration.

Images stream in one permutation per epoch, in which images of rare categories may stand several
times; landscape and portrait images gather in separate
batches, as Detectron2 does, so that padding stays small. A resume replays the (cheap) stream of
indices up to its iteration.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from sslbench import dist
from sslbench.datasets import Record
from sslbench.datasets.packed import PackedRecords
from sslbench.loading import start_loading
from sslbench.rng import numpy_generator, torch_generator
from transfer.engines.base import Draw, Mapper
from transfer.repeat_factors import epoch_indices


def index_stream(num_images: int, seed: int, factors: np.ndarray | None = None) -> Iterator[int]:
    """Image indices for ever: a fresh permutation per epoch.

    Args:
        factors: how often an epoch shows each image; None for once.
    """
    for epoch in count():
        shown = np.arange(num_images) if factors is None else epoch_indices(factors, seed, epoch)
        yield from numpy_generator(seed, "order", epoch).permutation(shown).tolist()


def batch_stream(
    groups: Sequence[int], batch_size: int, seed: int, factors: np.ndarray | None = None
) -> Iterator[list[int]]:
    """Batches for ever, each from one group; a batch is given out when its group has filled it.

    Args:
        groups: group of each image.
        factors: as for ``index_stream``.
    """
    waiting: dict[int, list[int]] = {group: [] for group in groups}
    for index in index_stream(len(groups), seed, factors):
        bucket = waiting[groups[index]]
        bucket.append(index)
        if len(bucket) == batch_size:
            yield bucket.copy()
            bucket.clear()


class TrainingBatches:
    """Batches of training samples by iteration number; of several processes, each reads its share.

    Args:
        grouped: whether landscape and portrait images are kept apart.
        factors: how often an epoch shows each record; None for once.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Mapper,
        batch_size: int,
        seed: int,
        *,
        grouped: bool,
        factors: np.ndarray | None = None,
        num_workers: int = 0,
    ) -> None:
        self.groups = [int(grouped and r.width > r.height) for r in records]
        if num_workers:
            records = PackedRecords(records)
        self.samples = _TrainingSamples(records, mapper, seed)
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.factors = factors

    def __call__(self, start: int, stop: int) -> Iterator[list[Any]]:
        """Samples of iterations ``start`` to ``stop`` (not included), those of this process."""
        stream = batch_stream(self.groups, self.batch_size, self.seed, self.factors)
        indices = islice(stream, start, stop)
        keys = (
            _share([(iteration, slot, index) for slot, index in enumerate(batch)])
            for iteration, batch in enumerate(indices, start)
        )
        return loader(self.samples, keys, self.num_workers)


def _share(keys: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    size = len(keys) // dist.world_size()
    return keys[dist.rank() * size : (dist.rank() + 1) * size]


class _TrainingSamples(Dataset[Any]):
    def __init__(self, records: Sequence[Record], mapper: Mapper, seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        iteration, slot, index = key
        return self.mapper.train(self.records[index], Draw(self.seed, iteration, slot))


class TestSamples(Dataset[Any]):
    """Samples of test images in order."""

    __test__ = False  # not a test class, whatever pytest thinks

    def __init__(self, records: Sequence[Record], mapper: Mapper) -> None:
        self.records, self.mapper = records, mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.mapper.test(self.records[index])


def loader(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    num_workers: int,
    collate: Callable[[list[Any]], Any] = list,
) -> Iterator[Any]:
    """Read the given batches of keys in order, in this process or in ``num_workers`` others."""
    # the loader draws a seed for its workers from this generator, not from the global one
    generator = torch_generator(0, "loader")
    return start_loading(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        generator=generator,
    )
