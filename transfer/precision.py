"""16-bit training: the networks compute in 16 bits, everything that measures boxes in 32.

As in Detectron2's mixed-precision trainer, the whole forward pass of training runs under autocast,
while batch-norm statistics after training and predictions are made in float32. Unlike there, no
proposal, region or loss is rounded: bfloat16 has 8 significant bits, so that a coordinate near
1,000 would move in steps of 4 pixels.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sslbench.precision import Precision, at_least_fp32
from transfer.checkpoint import TrainingError

# By engine: modules whose outputs are logits and box corrections; what follows them is exact.
PREDICTORS = {
    "torchvision": ("proposals.head", "heads.box_predictor", "heads.region_mask_head"),
    "detectron2": (
        "proposal_generator.rpn_head",
        "roi_heads.box_predictor",
        "roi_heads.mask_head.predictor",
    ),
}
# Modules that read maps at regions, which they would round to the maps' precision.
POOLERS = {
    "torchvision": ("heads.box_roi_pool", "heads.region_mask_pooler"),
    "detectron2": ("roi_heads.pooler", "roi_heads.box_pooler", "roi_heads.mask_pooler"),
}
LEAST_SCALE = 2.0**-10


def widened(value: Any) -> Any:
    """Turn 16-bit tensors in nested lists and tuples into float32."""
    if isinstance(value, Tensor):
        return at_least_fp32(value) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(widened(inner) for inner in value)
    return value


def keep_boxes_exact(model: nn.Module, engine: str) -> None:
    """Make a detector widen its maps before regions are read, and its outputs after predicting."""
    for module in _present(model, PREDICTORS[engine]):
        module.register_forward_hook(lambda _, inputs, output: widened(output))
    for module in _present(model, POOLERS[engine]):
        module.register_forward_pre_hook(lambda _, inputs: widened(inputs))


def _present(model: nn.Module, names: tuple[str, ...]) -> Iterator[nn.Module]:
    modules = dict(model.named_modules())
    return (modules[name] for name in names if name in modules)


class Scaler:
    """Gradients of float16, times a scale that keeps them from vanishing; otherwise nothing.

    A step whose gradients overflow is left out and the scale halved: the loss is finite, so that
    this is no divergence.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def scaled(self, loss: Tensor) -> Tensor:
        """Scale a loss before its backward pass."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step unless a gradient is not finite, and adapt the scale.

        Raises:
            TrainingError: steps are left out at any scale.
        """
        self._scaler.step(optimizer)
        self._scaler.update()
        if self._scaler.is_enabled() and self._scaler.get_scale() < LEAST_SCALE:
            raise TrainingError(
                f"gradients overflow float16 even when scaled by {LEAST_SCALE:g}: training "
                "diverged, or needs more range. Take precision=bf16 or fp32, or lower "
                "set.SOLVER.BASE_LR"
            )

    def values(self) -> dict[str, float]:
        """What to log: the scale, where there is one."""
        enabled = self._scaler.is_enabled()
        return {"loss_scale": self._scaler.get_scale()} if enabled else {}

    def state_dict(self) -> dict[str, Any]:
        """State that a resume needs; empty without a scale."""
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a saved scale."""
        if state:
            self._scaler.load_state_dict(state)
