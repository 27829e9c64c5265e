"""Networks of DeepMind's Haiku: nested mappings of modules, parameters and moving averages apart.

A *tree* maps a module's name to its arrays by name. A training state holds one tree of parameters
and one of averages for each network, as a mapping (``online_params``, ``online_state`` ...) or,
once its class is not known, as a plain tuple in the order online, target.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

STEM, AVERAGES = "initial_conv", "/mean_ema"
KIND = re.compile(r"_?(?:params|state)$")  # what a network's two trees are called after its name
OPTIMISER = re.compile(r"optimi[sz]er|(?:^|[/_])optim(?:$|[/_s])|opt_state|scheduler", re.I)
BRANCHES = ("online", "target")
MAX_NODES = 10_000  # of a file that are looked at


def haiku_sections(top: Any) -> dict[str, dict[str, Tensor]]:
    """Return the arrays of the networks of a training state, or nothing where there is none."""
    for trees in _families(top):
        parameters, averages = _networks(trees, STEM), _networks(trees, AVERAGES)
        shared = [name for name in parameters if name in averages]
        if shared:
            return {name: _flat(parameters[name]) | _flat(averages[name]) for name in shared}
    return {}


def _networks(
    trees: list[tuple[str, Mapping[str, Any]]], mark: str
) -> dict[str, Mapping[str, Any]]:
    """Trees with a mark by their network: as they are named, else in the order of ``BRANCHES``.

    A tree named after neither branch, as ``ema_params``, keeps its name: it may be anybody's. One
    that is called ``params`` alone is what was trained.
    """
    marked = [
        (name, tree)
        for name, tree in trees
        if any(isinstance(key, str) and mark in key for key in tree)
    ]
    if not any(name for name, _ in marked):
        return {branch: tree for branch, (_, tree) in zip(BRANCHES, marked, strict=False)}
    named = [(name, tree) for name, tree in marked if not OPTIMISER.search(name)]
    return {KIND.sub("", name) or BRANCHES[0]: tree for name, tree in named}


def _families(top: Any) -> Iterator[list[tuple[str, Mapping[str, Any]]]]:
    """Trees that stand beside one another, the outermost first."""
    waiting, seen = deque([top]), 0
    while waiting and seen < MAX_NODES:
        node, seen = _bare(waiting.popleft()), seen + 1
        if _is_tree(node):
            yield [("", node)]
            continue
        children = list(_children(node))
        trees = [(name, _bare(child)) for name, child in children if _is_tree(_bare(child))]
        if trees:
            yield trees
        waiting.extend(child for _, child in children)


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from ((str(key), value) for key, value in node.items())
    elif isinstance(node, list | tuple):
        yield from (("", value) for value in node)


def _bare(node: Any) -> Any:
    """Take a mapping out of its read-only wrapper, whose class the reader did not know."""
    while True:
        if isinstance(node, tuple) and len(node) == 1:
            node = node[0]
        elif isinstance(node, Mapping) and len(node) == 1 and next(iter(node)) in WRAPPED:
            node = next(iter(node.values()))
        else:
            return node


WRAPPED = ("_mapping", "_storage", "_dict")


def _is_tree(node: Any) -> bool:
    return isinstance(node, Mapping) and any(
        isinstance(name, str) and (STEM in name or AVERAGES in name) for name in node
    )


def _flat(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for module, arrays in tree.items():
        inner = _bare(arrays)
        named = inner.items() if isinstance(inner, Mapping) else [("", inner)]
        for name, value in named:
            if isinstance(value, Tensor):
                found[f"{module}/{name}".removesuffix("/")] = value
    return found
