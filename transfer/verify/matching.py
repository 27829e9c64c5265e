"""Which tensors of a file Detectron2 would load into a trunk: its checkpointer's rules, replayed.

Exact names, or with ``matching_heuristics`` the longest name in the file that a name of the model
ends with. What does not match is only logged there, and training goes on from random weights.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from transfer.detectron2_names import bare_name, depths, trunk_names
from transfer.verify.detector_file import DetectorFile
from transfer.verify.findings import Finding

COUNTER = "num_batches_tracked"
IN_TRUNK = re.compile(r"^(.*?)((?:stem\.conv1|res[2-5]\.\d+)\..+)$")
# of a whole detector; they are no part of the trunk, and rightly there
OF_HEADS = re.compile(r"^(?:backbone\.fpn_|proposal_generator\.|roi_heads\.|pixel_(?:mean|std)$)")
INITIAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}  # of a norm
LAYOUTS = ("fpn", "c4", "dc5")


@dataclass(frozen=True)
class Matching:
    """What would arrive in the trunk of one kind of detector."""

    layout: str
    loaded: Mapping[str, str]  # Detectron2's name -> name in the file
    missing: tuple[str, ...]  # Detectron2's names that keep their random or initial values
    unused: tuple[str, ...]  # names in the file

    @property
    def complete(self) -> bool:
        return not self.missing


def best_match(file: DetectorFile) -> Matching:
    """The kind of detector that takes most; bare names fit all alike and count as fpn's."""
    found = [match(file, layout) for layout in LAYOUTS if file.depth in depths(layout)]
    return max(found, key=lambda m: len(m.loaded))


def takers(file: DetectorFile) -> list[str]:
    """Kinds of detectors into which the whole trunk would be loaded."""
    possible = [layout for layout in LAYOUTS if file.depth in depths(layout)]
    return [layout for layout in possible if match(file, layout).complete]


def match(file: DetectorFile, layout: str) -> Matching:
    """Replay Detectron2's loading of a trunk as deep and wide as the file's own."""
    expected = trunk_names(layout, file.depth, file.width)
    names = {_as_seen(name, file.author, file.heuristics): name for name in file.tensors}
    pairs = _by_ending(expected, names) if file.heuristics else {}
    pairs = pairs or _exactly(expected, names)
    loaded = {k: v for k, v in pairs.items() if tuple(file.tensors[v].shape) == expected[k]}
    used = set(loaded.values())
    return Matching(
        layout=layout,
        loaded=loaded,
        missing=tuple(name for name in expected if name not in loaded),
        unused=tuple(n for n in file.tensors if n not in used and not _is_expected(n)),
    )


def _as_seen(name: str, author: str, heuristics: bool) -> str:
    """Files of Caffe2 have their names changed first, which breaks ``running_mean``."""
    return name.replace("_", ".") if author == "Caffe2" and heuristics else name


def _by_ending(expected: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name in expected:
        parts = name.split(".")
        endings = (".".join(parts[i:]) for i in range(len(parts)))
        ending = next((e for e in endings if e in names), None)
        if ending is not None:
            found[name] = names[ending]
    return found


def _exactly(expected: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    if all(name.startswith("module.") for name in names):
        names = {name.removeprefix("module."): original for name, original in names.items()}
    return {name: names[name] for name in expected if name in names}


def _is_expected(name: str) -> bool:
    in_head = OF_HEADS.match(name) and not name.startswith("roi_heads.res5.")
    return name.endswith(COUNTER) or bool(in_head)


def meant_trunk(file: DetectorFile, matching: Matching) -> tuple[dict[str, Tensor], list[str]]:
    """The trunk that the file means under bare names, whatever Detectron2 would make of it.

    Returns:
        The tensors, and the bare names that have no or more than one candidate in the file.
    """
    expected = trunk_names("fpn", file.depth, file.width)
    bare = {bare_name(name, "fpn"): shape for name, shape in expected.items()}
    taken = {bare_name(k, matching.layout): v for k, v in matching.loaded.items()}
    candidates: dict[str, list[str]] = {name: [] for name in bare}
    for name in file.tensors:
        found = IN_TRUNK.match(name)
        if found and found[2] in bare and tuple(file.tensors[name].shape) == bare[found[2]]:
            candidates[found[2]].append(name)
    chosen = {
        n: taken[n] if n in taken else c[0]
        for n, c in candidates.items()
        if len(c) == 1 or n in taken
    }
    trunk = {name: file.tensors[key] for name, key in chosen.items()}
    return trunk, [name for name in bare if name not in trunk]


def with_initial_norms(
    trunk: Mapping[str, Tensor], lost: Collection[str], file: DetectorFile
) -> dict[str, Tensor]:
    """Fill lost tensors of norms with what a new norm holds, as Detectron2 would train with."""
    expected = trunk_names("fpn", file.depth, file.width)
    shapes = {bare_name(name, "fpn"): shape for name, shape in expected.items()}
    filled = dict(trunk)
    for name in lost:
        if ".norm." in name:
            filled[name] = torch.full(shapes[name], INITIAL[name.rsplit(".", 1)[1]])
    return filled


def loading_findings(
    file: DetectorFile, matching: Matching, *, layout_fixed: bool
) -> list[Finding]:
    """What is wrong with the names, and what of the file would not be used."""
    found = [] if matching.complete else [_not_loaded(file, matching, layout_fixed)]
    if matching.unused and matching.complete:
        few = ", ".join(matching.unused[:3]) + (" ..." if len(matching.unused) > 3 else "")
        text = f"{len(matching.unused)} tensors are no part of the trunk and are not used ({few})"
        found.append(Finding("note", "weights", text))
    return found


def _not_loaded(file: DetectorFile, matching: Matching, layout_fixed: bool) -> Finding:
    total = len(matching.missing) + len(matching.loaded)
    text, way_out = _why(file, matching, layout_fixed)
    head = f"Detectron2 would load {len(matching.loaded)} of the trunk's {total} tensors, for "
    return Finding("error", "weights", head + text, way_out)


def _why(file: DetectorFile, matching: Matching, layout_fixed: bool) -> tuple[str, str]:
    convert = f"Convert for it: python -m transfer convert CHECKPOINT --layout {matching.layout}"
    if matching.layout == "dc5":
        convert = "Take a file of bare names (res2...) with 'matching_heuristics': True"
    elsewhere = best_match(file)
    if layout_fixed and elsewhere.complete:
        return (
            f"its names are of the layout {elsewhere.layout} and the recipe builds "
            f"{matching.layout}",
            convert,
        )
    if not file.heuristics and match(replace(file, heuristics=True), matching.layout).complete:
        return (
            "the names are no exact ones and the file lacks 'matching_heuristics': True",
            f"Write that flag beside 'model'. {convert}",
        )
    if file.author == "Caffe2" and match(replace(file, author=""), matching.layout).complete:
        return (
            "the file passes for one of Caffe2, whose names have no '_': every running_mean and "
            "running_var stays at 0 and 1",
            "Write {'model': ..., '__author__': 'NAME', 'matching_heuristics': True}. " + convert,
        )
    prefix = _prefix_left(file, matching)
    if prefix:
        return f"the prefix {prefix!r} is left on every name", f"Remove it. {convert}"
    few = ", ".join(matching.missing[:3])
    return f"these are missing or of another shape: {few}", convert


def _prefix_left(file: DetectorFile, matching: Matching) -> str:
    """What must go from the front of every name of the trunk for all of them to be loaded."""
    inside = {name: value for name, value in file.tensors.items() if IN_TRUNK.match(name)}
    prefix = ""
    while len(firsts := {name.split(".")[0] for name in inside}) == 1:
        first = firsts.pop() + "."
        prefix += first
        inside = {name.removeprefix(first): value for name, value in inside.items()}
        if any(
            match(replace(file, tensors=inside, heuristics=h), matching.layout).complete
            for h in (False, True)
        ):
            return prefix
    return ""
