"""LARS: momentum SGD whose step is scaled by |w| / |gradient|, tensor by tensor."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive SGD with momentum.

    Tensors of two and more dimensions take weight decay (added before the norm is taken) and
    adaptation; biases and normalisation weights take neither. The learning rate multiplies the
    momentum buffer when it is applied. A tensor without gradient is left alone, its buffer too.

    Args:
        params: parameters, or groups of them.
        trust: the factor eta in front of |w| / |g|.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        *,
        weight_decay: float = 1.5e-6,
        momentum: float = 0.9,
        trust: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust": trust,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update; ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("LARS takes no closure")
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in params if p.ndim >= 2]
            vectors = [p for p in params if p.ndim < 2]
            if matrices:
                self._apply(matrices, adapted_gradients(matrices, group), group)
            if vectors:
                self._apply(vectors, [_gradient(p) for p in vectors], group)

    def _apply(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def adapted_gradients(params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Weight-decayed gradients, scaled by trust * |w| / (|g| + eps); by 1 where a norm is 0."""
    grads = list(
        torch._foreach_add([_gradient(p) for p in params], params, alpha=group["weight_decay"])
    )
    weight_norms = torch.stack(torch._foreach_norm(params))
    grad_norms = torch.stack(torch._foreach_norm(grads))
    ratios = group["trust"] * weight_norms / (grad_norms + group["eps"])
    ratios = torch.where((weight_norms > 0) & (grad_norms > 0), ratios, torch.ones_like(ratios))
    torch._foreach_mul_(grads, list(ratios.unbind()))
    return grads


def _gradient(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad
