"""BatchNorm over the batches of all processes, on the GPU by torch, on the CPU by an all-reduce.

Shape letters: N rows, C channels.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslbench import dist
from sslbench.precision import at_least_fp32


class _Sum(torch.autograd.Function):
    """Sum over the processes; the gradient of a sum is the sum of their gradients."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        torch_dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch_dist.all_reduce(total)
        return total


class AllReduceBatchNorm(_BatchNorm):
    """BatchNorm whose statistics are those of all processes' rows: SyncBatchNorm for the CPU.

    Processes may hold different numbers of rows, and some none. Equals plain BatchNorm on the
    joined batch, forward and backward, up to rounding.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected rows of channels, got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C) or (N, C, ...)."""
        self._check_input_dim(input)
        if not self.training or dist.world_size() == 1:
            return super().forward(input)
        values = at_least_fp32(input)
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = _total(input.numel() // input.shape[1])
        mean_C = _sum(values.sum(dim=axes)) / max(count, 1)
        centred = values - mean_C.view(shape)
        variance_C = _sum(centred.square().sum(dim=axes)) / max(count, 1)
        if count:
            self._track(mean_C.detach(), variance_C.detach() * count / max(count - 1, 1))
        scale_C = self.weight / torch.sqrt(variance_C + self.eps)
        return (centred * scale_C.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C, self.momentum)


def _total(count: int) -> int:
    total = torch.tensor(count)
    torch_dist.all_reduce(total)
    return int(total)


def _sum(value_C: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value_C)
    return total


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """Exchange every BatchNorm for one over all processes; on one process nothing changes.

    Names, parameters and buffers stay what they are, so checkpoints fit either way.
    """
    if dist.world_size() == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm):
            setattr(module, name, _exchanged(child))
        else:
            synchronised(child, device)
    return module


def _exchanged(norm: _BatchNorm) -> AllReduceBatchNorm:
    made = AllReduceBatchNorm(norm.num_features, norm.eps, norm.momentum).to(norm.weight)
    made.load_state_dict(norm.state_dict())
    for old, new in zip(norm.parameters(), made.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return made.train(norm.training)


@contextlib.contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Forward passes within use batch statistics but leave the running ones as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    tracked = [norm.get_buffer("num_batches_tracked") for norm in norms]
    counts = [count.clone() for count in tracked]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for mine, count in zip(tracked, counts, strict=True):
            mine.copy_(count)
