"""Learning rate by iteration, and which parameters decay how much."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from transfer.engines.recipe import Recipe


@dataclass(frozen=True)
class Schedule:
    """Learning rate by iteration: linear warm-up, then steps down."""

    num_iterations: int
    base_lr: float
    milestones: tuple[int, ...]
    gamma: float
    warmup_iterations: int
    warmup_factor: float

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Read the recipe's ``SOLVER`` keys."""
        return cls(
            recipe["SOLVER.MAX_ITER"],
            recipe["SOLVER.BASE_LR"],
            tuple(recipe["SOLVER.STEPS"]),
            recipe["SOLVER.GAMMA"],
            recipe["SOLVER.WARMUP_ITERS"],
            recipe["SOLVER.WARMUP_FACTOR"],
        )

    def lr_at(self, iteration: int) -> float:
        """Learning rate of one iteration, counted from 0."""
        lr = self.base_lr * self.gamma ** bisect_right(self.milestones, iteration)
        if iteration >= self.warmup_iterations:
            return lr
        done = iteration / self.warmup_iterations
        return lr * (self.warmup_factor * (1 - done) + done)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: norms with their own weight decay, all others."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm)
        chosen = norms if is_norm else others
        chosen += [p for p in module.parameters(recurse=False) if p.requires_grad]
    return [
        {"params": others, "weight_decay": recipe["SOLVER.WEIGHT_DECAY"]},
        {"params": norms, "weight_decay": recipe["SOLVER.WEIGHT_DECAY_NORM"]},
    ]
