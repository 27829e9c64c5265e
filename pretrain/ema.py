"""The target network: a moving average of the online network's parameters."""

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """Copy a module; the copy takes no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_average(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Move the target's parameters: target <- rate * target + (1 - rate) * online.

    Buffers are left alone: the target runs in train mode and keeps BatchNorm statistics of its own.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - rate)
