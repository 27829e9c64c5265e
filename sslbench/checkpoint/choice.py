"""Which trunk of a file is meant; a file that no format explains in full is refused."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from sslbench.checkpoint.errors import CheckpointError, listed
from sslbench.checkpoint.formats import BRANCHES, FC, FORMATS, Format
from sslbench.checkpoint.naming import SCHEMES
from sslbench.checkpoint.sections import Contents, Trunk, unwrapped
from sslbench.checkpoint.trunk import differences

NO_PREFIX = "."  # as a branch: the trunk whose names have nothing in front
MAX_COUNTED = 1000  # strangers, to find the nearest format
BY_PREFIX = "prefix"  # the format's name where somebody said which prefix is meant


@dataclass(frozen=True)
class Choice:
    """One trunk of a file under canonical names, and what was left out."""

    format: str
    prefix: str
    scheme: str
    inside: Mapping[str, Tensor]
    dropped: tuple[str, ...]


def choose(contents: Contents, branch: str, path: Path) -> Choice:
    """Find the trunk that ``branch`` means.

    Raises:
        CheckpointError: no trunk, strangers beside it, or trunks of equal rank that differ.
    """
    if not contents.trunks:
        raise CheckpointError(f"{path}: {_why_no_trunk(contents.tensors)}")
    if branch not in BRANCHES:
        return _by_prefix(contents, branch, path)
    placed = [name for name, fmt in FORMATS.items() if _fits(contents, fmt)]
    fitting = [name for name in placed if next(_strangers(contents, FORMATS[name]), None) is None]
    if not fitting:
        raise CheckpointError(f"{path}: {_why_unknown(contents)}")
    chosen = {name: _prefixes(contents, FORMATS[name], branch) for name in fitting}
    named = {name: prefixes for name, prefixes in chosen.items() if prefixes}
    if not named:
        raise CheckpointError(
            f"{path}: the layout of {fitting[0]}, without its {branch} branch; its trunks stand "
            f"behind {_shown(contents)}. Choose the other branch, or one of these prefixes"
        )
    if len({prefixes[0].prefix for prefixes in named.values()}) > 1:
        raise CheckpointError(
            f"{path}: {' and '.join(named)} write such a file, and its {branch} branch stands "
            f"behind {listed([p[0].prefix for p in named.values()])}. Pass the one that is meant "
            "as the branch"
        )
    name, trunks = next(iter(named.items()))
    other = BRANCHES[branch == BRANCHES[0]]
    for rival in fitting:
        if trunks[0] in _prefixes(contents, FORMATS[rival], other):
            raise CheckpointError(
                f"{path}: {trunks[0].prefix!r} is the {branch} branch in the layout of {name} and "
                f"the {other} branch in that of {rival}, and the file fits both. If it is the "
                f"trunk that is meant, pass {trunks[0].prefix!r} as the branch"
            )
    return _only(contents, name, trunks, branch, path)


def _fits(contents: Contents, fmt: Format) -> bool:
    """All trunks stand where this format has one, in its scheme, and what marks it is there."""
    in_place = all(t.prefix in fmt.places and t.scheme in fmt.schemes for t in contents.trunks)
    return in_place and fmt.is_marked(list(contents.tensors))


def _strangers(contents: Contents, fmt: Format) -> Iterator[str]:
    for key, inner in contents.inner.items():
        is_known = fmt.knows(inner) or (key != inner and fmt.knows(key))
        if not is_known and not _in_trunk(key, fmt):
            yield key


def _in_trunk(key: str, fmt: Format) -> bool:
    names = [key.removeprefix(place) for place in fmt.places if key.startswith(place)]
    return any(SCHEMES[s].canonical(name) is not None for s in fmt.schemes for name in names)


def _prefixes(contents: Contents, fmt: Format, branch: str) -> list[Trunk]:
    wanted = fmt.online if branch == "online" else fmt.target
    return [t for prefix in wanted for t in contents.trunks if t.prefix == prefix]


def _only(
    contents: Contents, name: str, trunks: Sequence[Trunk], branch: str, path: Path
) -> Choice:
    """Take the first of several copies; copies that differ are no copies."""
    choices = [_take(contents, name, trunk) for trunk in trunks]
    for other in choices[1:]:
        if not _same(choices[0].inside, other.inside):
            raise CheckpointError(
                f"{path}: {choices[0].prefix!r} and {other.prefix!r} should be copies of one trunk "
                f"but differ, and both are the branch {branch!r} in the layout of {name}. Say "
                f"which is meant: branch {choices[0].prefix!r} or {other.prefix!r}; if they are "
                "called alike, save the one that is meant alone"
            )
    return choices[0]


def _by_prefix(contents: Contents, branch: str, path: Path) -> Choice:
    ended = branch if branch.endswith((".", "/")) else f"{branch}."
    bare = "" if branch in ("", NO_PREFIX) else unwrapped(ended)
    wanted = {ended, bare, bare[:-1] + "/"} if bare else {""}  # a whole section's too
    found = [t for t in contents.trunks if t.prefix == branch] or [
        t for t in contents.trunks if t.prefix in wanted
    ]
    if found:
        return _only(contents, BY_PREFIX, found, branch, path)
    raise CheckpointError(
        f"{path}: no trunk behind the prefix {bare!r}; there are trunks behind {_shown(contents)}. "
        "Choose online, target or one of these prefixes as the branch"
    )


def _take(contents: Contents, name: str, trunk: Trunk) -> Choice:
    """Cut one trunk out, with whatever stands inside it that no format knows."""
    scheme = SCHEMES[trunk.scheme]
    inside, dropped = {}, []
    for key, value in contents.tensors.items():
        is_behind = key == trunk.section + contents.inner[key] and key.startswith(trunk.prefix)
        inner = key.removeprefix(trunk.prefix) if is_behind else None
        canonical = None if inner is None else scheme.canonical(inner)
        if canonical is not None:
            inside[canonical] = scheme.in_torch(value)
        elif inner is None or _is_known(contents.inner[key], inner, name, trunk):
            dropped.append(key)
        else:
            inside[inner] = value
    return Choice(name, trunk.prefix, trunk.scheme, inside, tuple(dropped))


def _is_known(key: str, inner: str, name: str, trunk: Trunk) -> bool:
    """Whether a key behind a trunk's prefix is known to be no part of it."""
    formats = [FORMATS[name]] if name in FORMATS else FORMATS.values()
    by_format = any(
        f.knows(key) or f.knows(trunk.section + key) for f in formats if _stands(trunk, f)
    )
    # without a prefix everything stands behind it, and nothing says that it belongs to the trunk
    stranger = name == BY_PREFIX and not trunk.within
    return by_format or bool(re.fullmatch(FC, inner)) or (stranger and not _looks_inside(inner))


def _stands(trunk: Trunk, fmt: Format) -> bool:
    """Whether the format has a trunk there, or behind these names in another section."""
    elsewhere = trunk.within and any(place.endswith("/" + trunk.within) for place in fmt.places)
    return trunk.prefix in fmt.places or bool(elsewhere)


def _looks_inside(inner: str) -> bool:
    parts = r"(?:conv1|bn1|layer\d|stem|res\d|[0-7]|embedder|encoder\.stages)\."
    return re.match(parts, inner) is not None


def _same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _shown(contents: Contents) -> str:
    return listed([trunk.prefix or NO_PREFIX for trunk in contents.trunks])


def _why_unknown(contents: Contents) -> str:
    """Name the nearest format and what keeps the file from being one."""
    near = [f for f, fmt in FORMATS.items() if any(t.prefix in fmt.places for t in contents.trunks)]
    kind = _kind(contents.tensors)
    hint = f" It looks like {kind}." if kind else ""
    way_out = (
        f"If its trunk is right all the same, pass its prefix as the branch: {_shown(contents)}"
    )
    if not near:
        return (
            f"trunks stand behind {_shown(contents)}, a layout of no known code base, and which "
            f"one is meant cannot be told.{hint} Pass one of these prefixes as the branch"
        )
    name = min(near, key=lambda f: _distance(contents, FORMATS[f]))
    strangers, trunks = list(_strangers(contents, FORMATS[name])), contents.trunks
    elsewhere = [t.prefix for t in trunks if t.prefix not in FORMATS[name].places]
    problems = [f"{len(strangers)} unexpected: {listed(strangers)}"] if strangers else []
    problems += [f"more trunks behind {listed(elsewhere)}"] if elsewhere else []
    for trunk in (t for t in trunks if t.prefix in FORMATS[name].places):
        problems += differences(_take(contents, name, trunk).inside, {"missing", "mis-shaped"})
    problems = problems or ["nothing in it marks it as one"]
    return f"nearest to the layout of {name}, but {'; '.join(problems)}.{hint} {way_out}"


def _distance(contents: Contents, fmt: Format) -> tuple[int, int]:
    elsewhere = sum(t.prefix not in fmt.places for t in contents.trunks)
    return elsewhere, sum(1 for _ in islice(_strangers(contents, fmt), MAX_COUNTED))


OTHER_KINDS = (
    (r"patch_embed\.proj|\.attn\.qkv\.|encoder\.layers?\.\d+\..*attention", "a vision transformer"),
    (r"res\d_\d_branch", "a ResNet under Caffe2's names, as MSRA's R-50.pkl: BGR pixels and stride "
     "in the 1x1 convolutions, which is another network"),
    (r"(?:^|\.)(?:conv1|stem)\.0\.weight$", "a ResNet with a deep stem (V1c/V1d)"),
    (r"\.se\.|\.se_module\.", "a squeeze-and-excitation ResNet"),
    (r"net\.\d\.blocks\.\d+\.net\.0\.weight", "a conversion of SimCLR's TensorFlow checkpoint, "
     "whose network takes pixels without mean and standard deviation"),
    (r"(?:^|\.)encoder[12]\.conv1\.weight$", "CMC, one trunk for luminance and one for colour"),
    (r"sobel", "a network on Sobel-filtered images"),
    (r"(?:^|\.)stem\.conv\.weight$|\.blocks\.\d+\.norm1\.", "a pre-activation ResNet (V2, BiT)"),
    (
        r"^head\.last_layer\.",
        "one branch of DINO saved alone, which may be student or teacher",
    ),
)  # fmt: skip


def _kind(tensors: Mapping[str, Tensor]) -> str:
    for pattern, kind in OTHER_KINDS:
        key = next((k for k in tensors if re.search(pattern, k)), None)
        if key is not None:
            return f"{kind} (it has {key!r})"
    return ""


def _why_no_trunk(tensors: Mapping[str, Tensor]) -> str:
    way_out = (
        "Only ResNet-18/34/50/101 with the 7x7 stem are read; docs/checkpoints.md has the list"
    )
    kind = _kind(tensors)
    if kind:
        return f"this looks like {kind}. {way_out}"
    stem = next((k for k in tensors if k == "conv1.weight" or k.endswith(".conv1.weight")), None)
    if stem is None or "layer" in stem:
        return (
            f"no 'conv1.weight' behind any prefix; its keys are {listed(list(tensors))}. {way_out}"
        )
    shape = () if tensors[stem].is_nested else tuple(tensors[stem].shape)
    if len(shape) != 4 or shape[1:] != (3, 7, 7):
        return f"{stem!r} is {shape}, not a 7x7 stem on three channels. {way_out}"
    prefix = stem.removesuffix("conv1.weight")
    return f"{stem!r} is there but {prefix + 'layer4.0.conv1.weight'!r} is missing. {way_out}"
