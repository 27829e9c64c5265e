"""A checkpoint's containers are opened and its tensors laid out under one name each.

A *section* is a mapping from names to tensors somewhere in the file. Keys of the main section, the
model itself, keep their names; those of another one that holds a trunk too get its place in front,
as ``teacher/backbone.conv1.weight``. Sections without a trunk (optimiser, heads) are left out.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sslbench.checkpoint.errors import CheckpointError, listed
from sslbench.checkpoint.haiku import haiku_sections
from sslbench.checkpoint.naming import SCHEMES

MAIN = ("state_dict", "model", "model_state_dict", "")
OPTIMISER = re.compile(r"optim|opt_state|scheduler", re.IGNORECASE)
ENOUGH = 4  # of a trunk's six marks: also one with a key too few is one
MAX_DEPTH = 8  # of the deepest known container, VISSL's, is 5
# What DistributedDataParallel and torch.compile put in front of names. The second may stand
# anywhere, for nobody calls a module so; the first only in front.
WRAPPER = re.compile(r"^(?:module\.)+")
COMPILED = re.compile(r"(^|\.)_orig_mod\.")
# A C4 detector applies the last stage in its box head.
MOVES = (
    (re.compile(r"^roi_heads\.res5\."), "backbone.res5."),
    (re.compile(r"^roi_head(_k)?\.shared_head\.layer4\."), r"backbone\1.layer4."),
)


@dataclass(frozen=True)
class Trunk:
    """Where a ResNet stands in a file."""

    section: str  # what stands in front of its section's keys
    within: str  # prefix within the section
    scheme: str  # key of SCHEMES

    @property
    def prefix(self) -> str:
        """What stands in front of the trunk's names."""
        return self.section + self.within


@dataclass(frozen=True)
class Contents:
    """The sections of a file that hold a trunk, laid out flat."""

    tensors: Mapping[str, Tensor]
    inner: Mapping[str, str]  # full name -> name within its section
    trunks: tuple[Trunk, ...]


def unwrapped(name: str) -> str:
    """Take off what wrappers put in front of a name."""
    while True:
        shorter = WRAPPER.sub("", COMPILED.sub(r"\1", name))
        if shorter == name:
            return name
        name = shorter


def lay_out(top: Mapping[str, Any], path: Path) -> Contents:
    """Find the sections with trunks and name their tensors.

    Raises:
        CheckpointError: no tensors at all, or a name that stands twice.
    """
    sections = haiku_sections(top) or dict(_sections(top, "", 0))
    if not sections:
        raise CheckpointError(
            f"{path}: no tensors under any name; its top-level keys are "
            f"{listed([str(k) for k in top]) or 'none'}. Pass the file with the weights"
        )
    found = {place: _section(names, path) for place, names in sections.items()}
    trunks = {place: find_trunks(names) for place, names in found.items()}
    kept = [place for place in found if trunks[place]] or list(found)
    main = next((place for place in MAIN if place in kept), kept[0] if len(kept) == 1 else None)
    label = {place: "" if place == main and place in MAIN else f"{place}/" for place in kept}
    tensors = {label[p] + name: value for p in kept for name, value in found[p].items()}
    inner = {label[p] + name: name for p in kept for name in found[p]}
    where = tuple(Trunk(label[p], *trunk) for p in kept for trunk in trunks[p])
    return Contents(tensors, inner, where)


def _sections(node: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(node, Mapping) or depth > MAX_DEPTH or OPTIMISER.search(place):
        return
    tensors = {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in node.items():
        if isinstance(key, str):
            yield from _sections(value, f"{place}/{key}" if place else key, depth + 1)


def _section(names: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """One section's tensors without wrappers, with what a detector moved back in its place."""
    found: dict[str, Tensor] = {}
    for name, value in names.items():
        key = unwrapped(name)
        for pattern, home in MOVES:
            key = pattern.sub(home, key)
        if key in found:
            raise CheckpointError(
                f"{path}: {name!r} stands twice, with and without a wrapper's 'module.' or in two "
                "places of a detector; which is meant cannot be told. Save one state_dict()"
            )
        found[key] = value
    return found


def find_trunks(names: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Find every prefix with most of a trunk's marks behind it; also say in which scheme."""
    found = []
    for scheme_name, scheme in SCHEMES.items():
        seen = [p for mark in scheme.marks for p in _prefixes(names, mark)]
        found += [(p, scheme_name) for p in dict.fromkeys(seen) if seen.count(p) >= ENOUGH]
    return tuple(found)


def _prefixes(names: Collection[str], mark: str) -> Sequence[str]:
    ends = [name.removesuffix(mark) for name in names if name.endswith(mark)]
    return [prefix for prefix in ends if not prefix or prefix[-1] in "./"]
