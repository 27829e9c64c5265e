"""What Detectron2 calls a trunk's tensors and its settings, as dumped from Detectron2 itself.

``detectron2_names.txt`` and ``detectron2_keys.txt`` are written by
``python -m tests.transfer.dump_detectron2_names``; nothing here knows torchvision's names, so that
an error in the renaming shows even where Detectron2 is not installed.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES_PATH, KEYS_PATH = FOLDER / "detectron2_names.txt", FOLDER / "detectron2_keys.txt"
STEM = "stem.conv1.weight"
# Where a detector keeps res2 to res4 and the stem, and where res5; a dc5 detector has one trunk
# without a pyramid around it and shares its other names with c4.
HOMES = {
    "c4": ("backbone.", "roi_heads.res5."),
    "fpn": ("backbone.bottom_up.", "backbone.bottom_up.res5."),
    "dc5": ("backbone.", "backbone.res5."),
}

Shape = tuple[int, ...]


def depths(layout: str) -> list[int]:
    """Depths whose trunk a detector of this layout has.

    A C4 head of basic blocks is not Detectron2's own but ours: see ``has_own_head``.
    """
    listed = {"c4": "fpn", "dc5": "c4"}.get(layout, layout)
    return [depth for kind, depth in _dumped() if kind == listed]


def has_own_head(layout: str, depth: int) -> bool:
    """Whether Detectron2 itself has a detector with such a trunk."""
    return layout != "c4" or ("c4", depth) in _dumped()


def trunk_names(layout: str, depth: int, width: float = 1.0) -> dict[str, Shape]:
    """Names and shapes of every tensor of a detector's trunk.

    Raises:
        KeyError: Detectron2 has no such trunk.
    """
    if layout == "dc5":
        c4, dc5 = HOMES["c4"][1], HOMES["dc5"][1]
        names = {n.replace(c4, dc5): s for n, s in _dumped()["c4", depth].items()}
    elif has_own_head(layout, depth):
        names = _dumped()["c4" if layout == "c4" else "fpn", depth]
    else:
        trunk, last_stage = HOMES[layout]
        names = {
            n.replace(HOMES["fpn"][1], last_stage).replace(HOMES["fpn"][0], trunk): s
            for n, s in _dumped()["fpn", depth].items()
        }
    return {name: _thinner(name, shape, width) for name, shape in names.items()}


def bare_name(name: str, layout: str) -> str:
    """A trunk's own name without the place in the detector: ``res5.0.conv1.weight``."""
    trunk, last_stage = HOMES[layout]
    inner = name.removeprefix(last_stage)
    return f"res5.{inner}" if inner != name else name.removeprefix(trunk)


def misnamed(
    shapes: Mapping[str, Shape], layout: str, depth: int, width: float
) -> tuple[list[str], list[str]]:
    """Names that a detector does not know, and those of its trunk that are missing.

    A tensor of another shape counts as both: Detectron2 leaves it out.
    """
    expected = trunk_names(layout, depth, width)
    unknown = [name for name, shape in shapes.items() if expected.get(name) != shape]
    missing = [name for name, shape in expected.items() if shapes.get(name) != shape]
    return unknown, missing


@cache
def config_keys() -> frozenset[str]:
    """Every key of Detectron2's configuration that holds a value."""
    lines = KEYS_PATH.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def _thinner(name: str, shape: Shape, width: float) -> Shape:
    """Channels scale with the width; the three of a picture and the kernel's size do not."""
    channels = 1 if name.endswith(STEM) else 2
    return tuple(round(n * width) if i < channels else n for i, n in enumerate(shape))


@cache
def _dumped() -> dict[tuple[str, int], dict[str, Shape]]:
    found: dict[tuple[str, int], dict[str, Shape]] = {}
    for line in NAMES_PATH.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        first, second = line.split()
        if second.isdecimal() and first in HOMES:
            section = found.setdefault((first, int(second)), {})
        else:
            section[first] = tuple(int(n) for n in second.split("x"))
    return found
