"""torchvision <-> Detectron2 parameter names of a ResNet trunk. The only file that knows both.

The paper's "res2" is torchvision's ``layer2``; Detectron2's ``res2`` is ``layer1``.
"""

import re
from collections.abc import Mapping
from typing import Literal, TypeVar

Layout = Literal["c4", "fpn"]
Value = TypeVar("Value")

STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
# The same place in both worlds; {stage} is a key of STAGES on the left, its value on the right.
PAIRS = (
    ("conv1.weight", "stem.conv1.weight"),
    ("bn1.{stat}", "stem.conv1.norm.{stat}"),
    ("{stage}.{block}.conv{index}.weight", "{stage}.{block}.conv{index}.weight"),
    ("{stage}.{block}.bn{index}.{stat}", "{stage}.{block}.conv{index}.norm.{stat}"),
    ("{stage}.{block}.downsample.0.weight", "{stage}.{block}.shortcut.weight"),
    ("{stage}.{block}.downsample.1.{stat}", "{stage}.{block}.shortcut.norm.{stat}"),
)
FIELDS = {
    "block": r"\d+",
    "index": r"[1-3]",
    "stat": r"weight|bias|running_mean|running_var",
}
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
        trunk_name = _translate(name, LEFT_TO_RIGHT, "torchvision")
        renamed[_outer(trunk_name, layout)] = value
    return renamed


def from_detectron2(state: Mapping[str, Value], layout: Layout) -> dict[str, Value]:
    """Rename a detector's trunk to the canonical names; the inverse of ``to_detectron2``.

    Raises:
        NamingError: a name lies outside the trunk of this layout.
    """
    return {
        _translate(_inner(name, layout), RIGHT_TO_LEFT, "Detectron2"): value
        for name, value in state.items()
    }


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


def _rules(source: int, target: int) -> tuple[tuple[re.Pattern[str], str, dict[str, str]], ...]:
    names = [{left: right}.popitem() for left, right in STAGES.items()]
    stages = {pair[source]: pair[target] for pair in names}
    fields = {"stage": "|".join(stages), **FIELDS}
    groups = {name: f"(?P<{name}>{pattern})" for name, pattern in fields.items()}
    return tuple(
        (re.compile(pair[source].replace(".", r"\.").format(**groups)), pair[target], stages)
        for pair in PAIRS
    )


LEFT_TO_RIGHT, RIGHT_TO_LEFT = _rules(0, 1), _rules(1, 0)


def _translate(
    name: str, rules: tuple[tuple[re.Pattern[str], str, dict[str, str]], ...], side: str
) -> str:
    for pattern, template, stages in rules:
        match = pattern.fullmatch(name)
        if match is not None:
            found = match.groupdict()
            if "stage" in found:
                found["stage"] = stages[found["stage"]]
            return template.format(**found)
    raise NamingError(f"{name!r} is no {side} name of a ResNet trunk's parameter")
