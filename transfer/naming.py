"""Where a Detectron2 detector keeps the parameters of its ResNet trunk.

The paper's "res2" is torchvision's ``layer2``; Detectron2's ``res2`` is ``layer1``.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar

from sslbench.checkpoint.naming import DETECTRON2, VALUES

Layout = Literal["c4", "fpn"]
Value = TypeVar("Value")

STAGES = dict(zip(VALUES["stage"], DETECTRON2.values["stage"], strict=True))
# Where each layout keeps the trunk; a C4 detector applies the last stage in its box head.
TRUNK = {"c4": "backbone.", "fpn": "backbone.bottom_up."}
LAST_STAGE = {"c4": "roi_heads.res5.", "fpn": "backbone.bottom_up.res5."}


class NamingError(ValueError):
    """A parameter name that belongs to no ResNet trunk of the side it was said to come from."""


def to_detectron2(state: Mapping[str, Value], layout: Layout) -> dict[str, Value]:
    """Rename a canonical state to the exact names of a detector; values are passed through.

    Raises:
        NamingError: a name is not canonical.
    """
    renamed = {}
    for name, value in state.items():
        trunk_name = _known(DETECTRON2.named(name), name, "torchvision")
        renamed[_outer(trunk_name, layout)] = value
    return renamed


def from_detectron2(state: Mapping[str, Value], layout: Layout) -> dict[str, Value]:
    """Rename a detector's trunk to the canonical names; the inverse of ``to_detectron2``.

    Raises:
        NamingError: a name lies outside the trunk of this layout.
    """
    return {
        _known(DETECTRON2.canonical(_inner(name, layout)), name, "Detectron2"): value
        for name, value in state.items()
    }


def _known(translated: str | None, name: str, side: str) -> str:
    if translated is None or name.endswith("num_batches_tracked"):
        raise NamingError(f"{name!r} is no {side} name of a ResNet trunk's parameter")
    return translated


def _outer(trunk_name: str, layout: Layout) -> str:
    inner = trunk_name.removeprefix("res5.")
    return LAST_STAGE[layout] + inner if inner != trunk_name else TRUNK[layout] + trunk_name


def _inner(name: str, layout: Layout) -> str:
    inner = name.removeprefix(LAST_STAGE[layout])
    trunk_name = f"res5.{inner}" if inner != name else name.removeprefix(TRUNK[layout])
    if trunk_name == name or _outer(trunk_name, layout) != name:
        raise NamingError(
            f"{name!r} is not in the trunk of a {layout} detector; expected names that begin with "
            f"{TRUNK[layout]!r} or {LAST_STAGE[layout]!r}"
        )
    return trunk_name
