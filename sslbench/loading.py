"""Starts data loaders whose worker processes leave signals to the process that reads from them."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from sslbench.interrupt import held_back, obey_parent_only


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
