"""Projector and predictor: Linear -> BatchNorm -> ReLU -> Linear, sizes of BYOL."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class MLPHead(nn.Module):
    """Two-layer perceptron on row vectors.

    Args:
        inputs, hidden, outputs: sizes. The last layer has no BatchNorm.
        norm: makes the normalisation of a given number of channels.
        bias: of the last layer.
        per_slot: BatchNorm sees the rows of one sampled mask after the other, as in the released
            code, not all of them together.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        norm: Norm = nn.BatchNorm1d,
        *,
        bias: bool = False,
        per_slot: bool = False,
    ) -> None:
        super().__init__()
        self.per_slot = per_slot
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            norm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs, bias=bias),
        )

    def forward(self, rows_BRD: Tensor) -> Tensor:
        """Map (B, R, inputs) to (B, R, outputs)."""
        if self.per_slot:
            return torch.stack([self.layers(rows_BD) for rows_BD in rows_BRD.unbind(1)], dim=1)
        images, slots = rows_BRD.shape[:2]
        out: Tensor = self.layers(rows_BRD.flatten(0, 1))
        return out.view(images, slots, -1)
