"""The process group; everything is a no-op on one process."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def refuse_several_processes() -> None:
    """Stop a stage that torchrun started several times: stages run in one process so far.

    Raises:
        ValueError: ``WORLD_SIZE`` says that there are more, which would all train the same thing.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        raise ValueError(
            f"WORLD_SIZE is {started}, but a stage runs in one process; start it without torchrun"
        )


def _group_exists() -> bool:
    if "torch.distributed" not in sys.modules:  # torch-free work must not pay for importing it
        return False
    import torch.distributed as torch_dist

    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 on one process."""
    import torch.distributed as torch_dist

    return torch_dist.get_rank() if _group_exists() else 0


def world_size() -> int:
    """Number of processes, 1 without a group."""
    import torch.distributed as torch_dist

    return torch_dist.get_world_size() if _group_exists() else 1


def is_main() -> bool:
    """Whether this process writes files and logs."""
    return rank() == 0


def all_gather(value: "Tensor") -> "Tensor":
    """Concatenate ``value`` over the processes along dimension 0, in rank order, without gradient.

    Args:
        value: of equal shape on every process.
    """
    if world_size() == 1:
        return value.detach()
    import torch
    import torch.distributed as torch_dist

    parts = [torch.empty_like(value) for _ in range(world_size())]
    torch_dist.all_gather(parts, value.detach().contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        import torch.distributed as torch_dist

        torch_dist.barrier()
