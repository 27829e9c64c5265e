"""A checkpoint's containers are opened and its tensors laid out under one name each.

A *section* is a mapping from names to tensors somewhere in the file. Keys of the main section, the
model itself, keep their names; those of another one that holds a trunk too get its place in front,
as ``teacher/backbone.conv1.weight``. Sections without a trunk (optimiser, heads) are left out.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sslbench.checkpoint.errors import CheckpointError, listed, short
from sslbench.checkpoint.haiku import OPTIMISER, haiku_sections
from sslbench.checkpoint.naming import SCHEMES

T = TypeVar("T")
MAIN = ("state_dict", "model", "model_state_dict", "")
ENOUGH = 4  # of a trunk's six marks: also one with a key too few is one
MAX_DEPTH = 8  # of the deepest known container, VISSL's, is 5
MAX_NUMBERED = 100  # networks in a list; a longer one is a history of losses
MAX_CONTAINERS = 100_000  # of a file; one that stands in many places is many
MAX_TRUNKS = 100
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
    sections = haiku_sections(top) or _once(_sections(top, path), path)
    if not sections:
        raise CheckpointError(
            f"{path}: no tensors under any name; its top-level keys are "
            f"{listed([str(k) for k in top]) or 'none'}. Pass the file with the weights"
        )
    found = {place: _section(names, path) for place, names in sections.items()}
    trunks = {place: find_trunks(names) for place, names in found.items()}
    for place, names in found.items():
        _require_plain(names, trunks[place], path)
    kept = [place for place in found if trunks[place]] or list(found)
    main = next((place for place in MAIN if place in kept), kept[0] if len(kept) == 1 else None)
    label = {place: "" if place == main and place in MAIN else f"{place}/" for place in kept}
    named = ((label[p] + name, value) for p in kept for name, value in found[p].items())
    tensors = _once(named, path)
    inner = {label[p] + name: name for p in kept for name in found[p]}
    where = tuple(Trunk(label[p], *trunk) for p in kept for trunk in trunks[p])
    return Contents(tensors, inner, where)


def _once(pairs: Iterable[tuple[str, T]], path: Path) -> dict[str, T]:
    """Make a dict of what may have one name twice, as 'a/b' and 'b' within 'a'."""
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise CheckpointError(
                f"{path}: {short(name)} stands in two places of the file; which is meant cannot be "
                "told. Save one state_dict() and pass that file"
            )
        found[name] = value
    return found


def _sections(top: Any, path: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping with tensors and its place; in lists, and under numbers, there are some too."""
    waiting, seen = [(top, "", 0)], 0
    while waiting:
        node, place, depth = waiting.pop()
        seen += 1
        if seen > MAX_CONTAINERS:
            raise CheckpointError(
                f"{path} holds more than {MAX_CONTAINERS} containers within one another, which no "
                "checkpoint needs. Save the network's state_dict() alone and pass that file"
            )
        items = [(k, v) for k, v in _items(node) if isinstance(k, str | int)]
        tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            yield place, tensors
        inner = [
            (v, f"{place}/{k}" if place else str(k))
            for k, v in items
            if _is_container(v) and (isinstance(k, str) or len(node) <= MAX_NUMBERED)
        ]
        if depth < MAX_DEPTH:
            waiting += [(v, at, depth + 1) for v, at in inner[::-1] if not OPTIMISER.search(at)]


def _is_container(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) and len(value) > 0


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    return node.items() if isinstance(node, Mapping) else enumerate(node)


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
        seen = Counter(p for mark in scheme.marks for p in _prefixes(names, mark))
        found += [(prefix, scheme_name) for prefix, count in seen.items() if count >= ENOUGH]
    return tuple(found)


def _require_plain(
    names: Mapping[str, Tensor], trunks: Collection[tuple[str, str]], path: Path
) -> None:
    """Refuse a trunk's tensor that is not simply its numbers, before anything looks at them."""
    if len(trunks) > MAX_TRUNKS:
        raise CheckpointError(
            f"{path}: more than {MAX_TRUNKS} trunks. Save the one that is meant and pass that file"
        )
    for name, reason in ((n, oddity(v)) for n, v in names.items()):
        inner = [(s, name.removeprefix(p)) for p, s in trunks if reason and name.startswith(p)]
        if any(SCHEMES[scheme].canonical(own) for scheme, own in inner):
            raise CheckpointError(
                f"{path}: {name!r} is {reason}, not a plain tensor. Save the network's state_dict()"
                " with every tensor on the CPU, dense, and contiguous()"
            )


def oddity(value: Tensor) -> str:
    """Say why a tensor is not simply its numbers, or nothing."""
    if value.is_nested or value.layout != torch.strided:
        return "nested or sparse"
    if value.device.type != "cpu":
        return f"without numbers (device {value.device})"
    shown = value.numel() * value.element_size()
    if shown > value.untyped_storage().nbytes():  # a kilobyte could stand for a terabyte
        return "expanded, with each number in many places"
    return ""


def _prefixes(names: Collection[str], mark: str) -> Sequence[str]:
    ends = [name.removesuffix(mark) for name in names if name.endswith(mark)]
    return [prefix for prefix in ends if not prefix or prefix[-1] in "./"]
