"""Exact batch-norm statistics of fixed weights (PreciseBN, "Rethinking Batch in BatchNorm" Sec. 3).

Running averages lag behind the weights; here the statistics of all given batches are pooled, each
batch counting by its number of values. Of several processes all must call it, with a share of every
batch each; their norms give the statistics of the whole batch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sslbench import dist


class _Pool:
    """Mean and variance of all values seen."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.square = torch.zeros(())

    def add(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Add one batch.

        Args:
            variance: with Bessel's correction, as batch norm keeps it.
        """
        self.count += count
        share = count / self.count
        square = mean.square() + variance * ((count - 1) / count)
        self.mean = self.mean + (mean - self.mean) * share
        self.square = self.square + (square - self.square) * share


@torch.no_grad()
def precise_bn(
    model: nn.Module, forward: Callable[[int, Any], Any], batches: Iterable[tuple[int, Any]]
) -> int:
    """Replace the running statistics of all batch norms in training mode; return their number.

    Args:
        forward: runs the model on (iteration, batch).
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    ]
    momenta = [norm.momentum for norm in norms]
    pools = {norm: _Pool() for norm in norms}
    counts: dict[Any, int] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[module] = inputs[0].numel() // inputs[0].shape[1]

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0  # running statistics = those of the last batch
        for iteration, batch in batches:
            counts.clear()
            forward(iteration, batch)
            totals = _over_processes([counts.get(norm, 0) for norm in norms])
            for norm, total in zip(norms, totals, strict=True):
                if total:
                    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
                    pools[norm].add(mean.clone(), variance.clone(), total)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    for norm, pool in pools.items():
        if pool.count:
            norm.get_buffer("running_mean").copy_(pool.mean)
            norm.get_buffer("running_var").copy_(pool.square - pool.mean.square())
    return len(norms)


def _over_processes(counts: list[int]) -> list[int]:
    if dist.world_size() == 1 or not counts:
        return counts
    mine = torch.tensor([counts], device=dist.message_device())
    return [int(total) for total in dist.all_gather(mine).sum(dim=0).tolist()]
