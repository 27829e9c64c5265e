"""Which images make up which batch: a pure function of seed and iteration.

Images stream in one permutation per epoch; landscape and portrait images gather in separate
batches, as Detectron2 does, so that padding stays small. A resume replays the (cheap) stream of
indices up to its iteration.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any

from torch.utils.data import DataLoader, Dataset

from sslbench.datasets import Record
from sslbench.datasets.packed import PackedRecords
from sslbench.rng import numpy_generator, torch_generator
from transfer.engines.base import Draw, Mapper


def index_stream(num_images: int, seed: int) -> Iterator[int]:
    """Image indices for ever: a fresh permutation per epoch."""
    for epoch in count():
        yield from numpy_generator(seed, "order", epoch).permutation(num_images).tolist()


def batch_stream(groups: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches for ever, each from one group; a batch is given out when its group has filled it.

    Args:
        groups: group of each image.
    """
    waiting: dict[int, list[int]] = {group: [] for group in groups}
    for index in index_stream(len(groups), seed):
        bucket = waiting[groups[index]]
        bucket.append(index)
        if len(bucket) == batch_size:
            yield bucket.copy()
            bucket.clear()


class TrainingBatches:
    """Batches of training samples by iteration number.

    Args:
        grouped: whether landscape and portrait images are kept apart.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Mapper,
        batch_size: int,
        seed: int,
        *,
        grouped: bool,
        num_workers: int = 0,
    ) -> None:
        self.groups = [int(grouped and r.width > r.height) for r in records]
        if num_workers:
            records = PackedRecords(records)
        self.samples = _TrainingSamples(records, mapper, seed)
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers

    def __call__(self, start: int, stop: int) -> Iterator[list[Any]]:
        """Samples of iterations ``start`` to ``stop`` (not included)."""
        indices = islice(batch_stream(self.groups, self.batch_size, self.seed), start, stop)
        keys = (
            [(iteration, slot, index) for slot, index in enumerate(batch)]
            for iteration, batch in enumerate(indices, start)
        )
        return iter(loader(self.samples, keys, self.num_workers))


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
) -> DataLoader[Any]:
    """Read the given batches of keys in order, in this process or in ``num_workers`` others."""
    # the loader draws a seed for its workers from this generator, not from the global one
    generator = torch_generator(0, "loader")
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        generator=generator,
    )
