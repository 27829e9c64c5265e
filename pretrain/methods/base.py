"""What the training loop knows about a method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from pretrain.config import Precision
from pretrain.data import Batch, ViewSpec
from pretrain.plan import EpochPlan
from sslbench.resnet import ResNet


@dataclass(frozen=True)
class StepOutput:
    """Result of a forward pass."""

    terms: dict[str, Tensor]  # loss terms; the loop sums them, and sums them over the parts
    monitors: dict[str, Tensor]  # scalars worth watching, without gradient; averaged over parts


@runtime_checkable
class Method(Protocol):
    """An ``nn.Module`` with these members; all its state is in its ``state_dict``.

    A step's images arrive in parts of equal size, one after the other, as many as fit into memory.
    First ``prepare`` sees them all without gradient, then each part is differentiated by itself;
    what the parts return is summed.
    """

    view_spec: ViewSpec
    precision: Precision  # of the networks' passes; the loop sets it

    @property
    def online_backbone(self) -> ResNet:
        """The trunk whose features make masks and leave as the checkpoint."""

    def remarks(self) -> Sequence[str]:
        """What a user should know before the first step, one sentence each."""

    def prepare(self, parts: Sequence[Batch], plan: EpochPlan) -> Any:
        """Compute without gradient what every part is compared with; gathers from all processes."""

    def __call__(self, part: Batch, prepared: Any, plan: EpochPlan) -> StepOutput:
        """Compute what one part adds to the loss terms of this process's images."""

    def update_target(self, progress: float) -> dict[str, float]:
        """Follow the optimizer's step; ``progress`` is the share of all steps done.

        Returns:
            What is worth logging about it.
        """
