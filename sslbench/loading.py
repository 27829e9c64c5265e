"""Starts data loaders whose worker processes leave signals to the process that reads from them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from sslbench.interrupt import held_back, obey_parent_only
from sslbench.rng import torch_generator

Item = TypeVar("Item")
Made = TypeVar("Made")


def start_loading(dataset: Dataset[Any], **settings: Any) -> Iterator[Any]:
    """Start serving batches.

    Ctrl-C and schedulers signal every process of a run; workers that obeyed would end it before it
    has saved.

    Args:
        settings: of ``torch.utils.data.DataLoader``.
    """
    loader: DataLoader[Any] = DataLoader(dataset, worker_init_fn=obey_parent_only, **settings)
    with held_back():
        return iter(loader)


def made_ahead(
    make: Callable[[Item], Made], items: Sequence[Item], num_workers: int
) -> Iterator[Made]:
    """Yield what ``make`` makes of each item, in order, while workers make the next ones.

    Args:
        make: can be pickled, and so can the errors that it raises.
        num_workers: 0 makes each when it is asked for.

    Raises:
        ValueError: one that ``make`` raised, as it was raised.
    """
    served = start_loading(
        _Calls(make, items),
        batch_size=None,
        num_workers=min(num_workers, len(items)),
        collate_fn=_unchanged,
        # without one of its own, a loader draws a seed from the global generator
        generator=torch_generator(0, "made ahead"),
    )
    for made in served:
        if isinstance(made, ValueError):
            raise made
        yield made


@dataclass(frozen=True)
class _Calls(Dataset[Any], Generic[Item, Made]):
    make: Callable[[Item], Made]
    items: Sequence[Item]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Made | ValueError:
        try:
            return self.make(self.items[place])
        except ValueError as error:
            return error  # raised in a worker, its message would come wrapped in a traceback


def _unchanged(made: Any) -> Any:
    return made
