"""Networks of DeepMind's Haiku: nested mappings of modules, parameters and moving averages apart.

A *tree* maps a module's name to its arrays by name. A training state holds one tree of parameters
and one of averages for each network, as a mapping (``online_params``, ``online_state`` ...) or,
once its class is not known, as a plain tuple in the order online, target.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

STEM, AVERAGES = "initial_conv", "/mean_ema"
BRANCHES = ("online", "target")
MAX_NODES = 10_000  # of a file that are looked at


def haiku_sections(top: Any) -> dict[str, dict[str, Tensor]]:
    """Return the arrays of the networks of a training state, or nothing where there is none."""
    for trees in _families(top):
        parameters = [tree for _, tree in trees if any(STEM in name for name in tree)]
        averages = [tree for _, tree in trees if any(AVERAGES in name for name in tree)]
        if parameters and averages:
            return {
                branch: _flat(own) | _flat(statistics)
                for branch, own, statistics in zip(BRANCHES, parameters, averages, strict=False)
            }
    return {}


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
            yield sorted(trees, key=lambda pair: "target" in pair[0])  # online before target
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
