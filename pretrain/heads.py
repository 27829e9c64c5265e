"""Projector and predictor: Linear -> BatchNorm -> ReLU -> Linear, sizes of BYOL."""

from collections.abc import Callable

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class MLPHead(nn.Module):
    """Two-layer perceptron on row vectors; BatchNorm averages over all rows.

    Args:
        inputs, hidden, outputs: sizes. The last layer has neither BatchNorm nor bias.
        norm: makes the normalisation of a given number of channels.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: Norm = nn.BatchNorm1d) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            norm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs, bias=False),
        )

    def forward(self, rows_BRD: Tensor) -> Tensor:
        """Map (B, R, inputs) to (B, R, outputs)."""
        images, slots = rows_BRD.shape[:2]
        out: Tensor = self.layers(rows_BRD.flatten(0, 1))
        return out.view(images, slots, -1)
