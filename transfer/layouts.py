"""The names that weights are written under: of two kinds of detector, or torchvision's own."""

from collections.abc import Mapping
from typing import Literal, TypeVar, get_args

from transfer.naming import from_detectron2, to_detectron2

AnyLayout = Literal["c4", "fpn", "torchvision"]
LAYOUTS: tuple[AnyLayout, ...] = get_args(AnyLayout)
Value = TypeVar("Value")


def to_layout(state: Mapping[str, Value], layout: AnyLayout) -> dict[str, Value]:
    """Rename a canonical state; torchvision's names are the canonical ones."""
    return dict(state) if layout == "torchvision" else to_detectron2(state, layout)


def from_layout(state: Mapping[str, Value], layout: AnyLayout) -> dict[str, Value]:
    """Rename to the canonical names; the inverse of ``to_layout``.

    Raises:
        NamingError: a name lies outside the trunk of this layout.
    """
    return dict(state) if layout == "torchvision" else from_detectron2(state, layout)
