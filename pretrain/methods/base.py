"""What the training loop knows about a method."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pretrain.data import Batch, ViewSpec
from pretrain.schedule import EpochPlan
from sslbench.resnet import ResNet


@dataclass(frozen=True)
class StepOutput:
    """Result of a forward pass."""

    terms: dict[str, Tensor]  # loss terms; the loop sums them
    monitors: dict[str, Tensor]  # scalars worth watching, without gradient


@runtime_checkable
class Method(Protocol):
    """An ``nn.Module`` with these members; all its state is in its ``state_dict``."""

    view_spec: ViewSpec

    @property
    def online_backbone(self) -> ResNet:
        """The trunk whose features make masks and leave as the checkpoint."""

    def __call__(self, batch: Batch, plan: EpochPlan) -> StepOutput:
        """Compute the loss terms of one step."""

    def update_target(self, progress: float) -> None:
        """Follow the optimizer's step; ``progress`` is the share of all steps done."""
