"""Why maps differ: every classic mistake is undone in turn; the one that makes both equal is named.

Channels of the first convolution, the other branch of the checkpoint, the place of the stride, the
running statistics, and what the file says of pixels; each alone first, then two together.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from sslbench.checkpoint import Backbone, CheckpointError, load_backbone
from transfer.detectron2_names import bare_name
from transfer.naming import to_detectron2
from transfer.parity import canonical_maps
from transfer.verify.detector_file import Treatment
from transfer.verify.findings import Finding
from transfer.verify.maps import Sides, equal

STATISTICS = ("running_mean", "running_var")
BRANCHES = ("online", "target")
STEM = "stem.conv1.weight"
RIGHT = Treatment()  # of torchvision's networks, as every checkpoint here is


@dataclass(frozen=True)
class Cause:
    """One mistake: how to undo it, what to call it, how to mend it."""

    undo: Callable[[Sides], Sides]
    text: str
    way_out: str
    goes_with_others: bool = False  # worth trying together with each of the others


def original_trunk(backbone: Backbone) -> dict[str, Tensor]:
    """The checkpoint's tensors under bare names."""
    renamed = to_detectron2(backbone.state, "fpn")
    return {bare_name(name, "fpn"): value for name, value in renamed.items()}


def explain(
    sides: Sides, backbone: Backbone, pictures: list[Path], *, allow_pickle: bool
) -> Finding:
    """Name what would make the weights' maps equal to the checkpoint's, if anything does."""
    levels = sides.levels(pictures)
    head = f"the trunk's maps are not those of {Path(backbone.source).name}"
    # one picture is enough to tell causes apart, and there may be many to try
    pictures, sides = pictures[:1], replace(sides, right={k: v[:1] for k, v in sides.right.items()})
    known = list(_causes(sides, backbone, pictures, allow_pickle))
    singles = [(cause,) for cause in known]
    pairs = [pair for pair in combinations(known, 2) if pair[0].goes_with_others]
    for causes in (*singles, *pairs):
        undone = sides
        for cause in causes:
            undone = cause.undo(undone)
        if equal(undone.levels(pictures)):
            text = f"{head}: " + "; and ".join(c.text for c in causes)
            return Finding("error", "weights", text, _joined(causes), levels)
    text = f"{head}, and no usual mistake explains it; "
    text += differing(sides, backbone) or "no tensor differs"
    return Finding("error", "weights", text, "Convert the checkpoint again", levels)


def _joined(causes: tuple[Cause, ...]) -> str:
    return "; ".join(dict.fromkeys(cause.way_out for cause in causes))


def _causes(
    sides: Sides, backbone: Backbone, pictures: list[Path], allow_pickle: bool
) -> Iterator[Cause]:
    yield Cause(
        _swap_channels,
        "the first convolution has its input channels in the order BGR",
        "Convert again without turning them, or write INPUT: {FORMAT: BGR} with mean and std turned"
        " round",
        goes_with_others=True,
    )
    yield from _of_other_branches(backbone, pictures, allow_pickle)
    yield Cause(
        lambda s: replace(s, trunk=_unrounded(s.trunk, original_trunk(backbone))),
        "the tensors are rounded to half precision",
        "Convert again and keep float32",
    )
    yield from _of_treatment(sides.treatment)
    yield Cause(
        lambda s: replace(s, trunk={**s.trunk, **_statistics(original_trunk(backbone))}),
        "the running statistics are not the checkpoint's" + _how_initial(sides.trunk),
        "Convert again and keep running_mean and running_var of the same branch",
    )


def _unrounded(trunk: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put back what is the checkpoint's value but for its last digits."""
    return {
        name: right[name] if torch.equal(right[name].half().float(), value) else value
        for name, value in trunk.items()
    }


def _swap_channels(sides: Sides) -> Sides:
    return replace(sides, trunk={**sides.trunk, STEM: sides.trunk[STEM].flip(1)})


def _of_other_branches(
    backbone: Backbone, pictures: list[Path], allow_pickle: bool
) -> Iterator[Cause]:
    for branch in BRANCHES:
        if branch == backbone.branch:
            continue
        try:
            other = load_backbone(backbone.source, branch, allow_pickle)
        except CheckpointError:
            continue
        if other.prefix != backbone.prefix and other.depth == backbone.depth:
            right = canonical_maps(other, pictures)
            yield Cause(
                lambda s, right=right: replace(s, right=right),  # type: ignore[misc]
                f"they are the {branch} branch ({other.prefix!r}) and not {backbone.prefix!r}",
                f"Convert with --branch {backbone.branch}, or verify with --branch {branch}",
                goes_with_others=True,
            )


def _of_treatment(given: Treatment) -> Iterator[Cause]:
    yield Cause(
        lambda s: _treated(s, stride_in_1x1=not s.treatment.stride_in_1x1),
        f"STRIDE_IN_1X1 {given.stride_in_1x1} was used and the other place of the stride is meant",
        f"Write MODEL: {{RESNETS: {{STRIDE_IN_1X1: {not given.stride_in_1x1}}}}}",
    )
    for name in ("channel_order", "mean", "std"):
        value, right = getattr(given, name), getattr(RIGHT, name)
        if value != right:
            yield Cause(
                lambda s, name=name, right=right: _treated(s, **{name: right}),  # type: ignore[misc]
                f"the file says {name} {_plain(value)} and its tensors need {_plain(right)}",
                "Convert again",
            )
    if given.std != (1.0, 1.0, 1.0):
        yield Cause(
            lambda s: _treated(s, std=(1.0, 1.0, 1.0)),
            "the division by std is already in the first convolution",
            "Write MODEL: {PIXEL_STD: [1.0, 1.0, 1.0]}, or convert again without folding it in",
        )


def _treated(sides: Sides, **changes: object) -> Sides:
    return replace(sides, treatment=replace(sides.treatment, **changes))  # type: ignore[arg-type]


def _plain(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _statistics(trunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in trunk.items() if name.endswith(STATISTICS)}


def _how_initial(trunk: Mapping[str, Tensor]) -> str:
    """Say how many norms still have the values of a new one."""
    norms = [name.removesuffix(".running_mean") for name in trunk if name.endswith("running_mean")]
    initial = [
        norm
        for norm in norms
        if not trunk[f"{norm}.running_mean"].any()
        and bool((trunk[f"{norm}.running_var"] == 1).all())
    ]
    return (
        f" ({len(initial)} of {len(norms)} norms still have mean 0, variance 1)" if initial else ""
    )


def differing(sides: Sides, backbone: Backbone) -> str:
    """Say how many tensors are not the checkpoint's bit for bit, and by how much; empty if none."""
    expected = original_trunk(backbone)
    gaps = {
        name: (sides.trunk[name] - value).abs().max().item()
        for name, value in expected.items()
        if name in sides.trunk and sides.trunk[name].shape == value.shape
    }
    different = {name: gap for name, gap in gaps.items() if gap != 0}  # NaN is
    if not different:
        return ""
    shown = ", ".join(f"{name} by {gap:.2g}" for name, gap in list(different.items())[:3])
    return f"{len(different)} of {len(expected)} tensors differ ({shown})"
