"""Where each code base keeps its trunk, and which keys beside it are known and not wanted.

A file is flattened to ``name -> tensor``, every prefix in front of a ResNet is found, and the first
format that explains *all* keys names the branches. To add a format add one entry to ``FORMATS`` and
a test with its key list.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslbench.checkpoint.errors import CheckpointError, listed

BRANCHES = ("online", "target")
MAIN_CONTAINERS = ("state_dict", "model", "model_state_dict")
SIDE_CONTAINERS = ("student", "teacher", "model_ema")  # keep their name as the first part of a key
WRAPPER = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
TRUNK_KEY = re.compile(r"(?:conv1|bn1|layer[1-4]\.\d+)\.")
CLASSIFIER = "fc."


@dataclass(frozen=True)
class Format:
    """How one code base names things, after ``module.`` is gone."""

    online: tuple[str, ...]  # prefixes of the trunk; several are copies of one another
    target: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()  # prefixes of keys that are no part of a trunk


FORMATS: dict[str, Format] = {
    "sslbench": Format(("online.backbone.",), ("target.backbone.",), ("online.", "target.")),
    "torchvision": Format(("",)),
    "SwAV": Format(("",), (), ("projection_head.", "prototypes.")),
    "MoCo": Format(("encoder_q.",), ("encoder_k.",), ("queue",)),
    "OpenSelfSup": Format(
        ("backbone.", "encoder_q.0.", "online_net.0."),
        ("encoder_k.0.", "target_net.0."),
        (
            "encoder_q.1.",
            "encoder_k.1.",
            "online_net.1.",
            "target_net.1.",
            "neck.",
            "head.",
            "global_head.",
            "local_intra_head.",
            "local_inter_head.",
            "queue",
        ),
    ),
    "byol-pytorch": Format(
        ("net.", "online_encoder.net."),
        ("target_encoder.net.",),
        ("online_encoder.projector.", "target_encoder.projector.", "online_predictor."),
    ),
    "DINO": Format(
        ("student.backbone.",), ("teacher.backbone.",), ("student.head.", "teacher.head.")
    ),
    "PyContrast": Format(
        ("encoder.",),
        ("encoder_k.", "model_ema.encoder."),
        (
            *("projector.", "projector_k.", "predictor.", "neck.", "neck_k.", "head.", "head_k."),
            *("head_jig.", "queue", "model_ema.head.", "model_ema.head_jig."),
        ),
    ),
}


@dataclass(frozen=True)
class Choice:
    """One trunk of a file: its keys without the prefix, and what was left out."""

    format: str
    prefix: str
    inside: Mapping[str, Tensor]
    dropped: tuple[str, ...]


def flatten(top: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Take the tensors out of the known containers under their names without wrappers."""
    main = next((top[n] for n in MAIN_CONTAINERS if isinstance(top.get(n), Mapping)), None)
    parts = {"": main} if main is not None else {}
    parts |= {f"{n}.": top[n] for n in SIDE_CONTAINERS if isinstance(top.get(n), Mapping)}
    flat: dict[str, Tensor] = {}
    for container, mapping in (parts or {"": top}).items():
        for name, value in _tensors(mapping):
            key = container + WRAPPER.sub("", name)
            if key in flat:
                raise CheckpointError(
                    f"{path}: {name!r} stands twice, with and without 'module.'; "
                    "which is meant cannot be told. Save one state_dict()"
                )
            flat[key] = value
    if not flat:
        raise CheckpointError(
            f"{path}: no tensors under {listed(MAIN_CONTAINERS + SIDE_CONTAINERS, 9)} nor at the "
            f"top; its top-level keys are {listed([str(k) for k in top]) or 'none'}"
        )
    return flat


def _tensors(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in mapping.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield name, value


def trunk_prefixes(flat: Mapping[str, Tensor]) -> list[str]:
    """Every prefix in front of a ResNet: a 7x7 stem on three channels and a fourth stage."""
    stem = "conv1.weight"
    found = [key.removesuffix(stem) for key in flat if key == stem or key.endswith("." + stem)]
    return [p for p in found if _is_stem(flat[p + stem]) and f"{p}layer4.0.conv1.weight" in flat]


def _is_stem(weight: Tensor) -> bool:
    return weight.ndim == 4 and tuple(weight.shape[1:]) == (3, 7, 7)


def choose(flat: Mapping[str, Tensor], branch: str, path: Path) -> Choice:
    """Find the trunk that ``branch`` means; refuse a file that no format explains.

    Raises:
        CheckpointError: no trunk, strangers beside it, or trunks of equal rank that differ.
    """
    found = trunk_prefixes(flat)
    if not found:
        raise CheckpointError(f"{path}: {_why_no_trunk(flat)}")
    if branch not in BRANCHES:
        return _by_prefix(flat, branch, found, path)
    strangers = {name: _strangers(flat, fmt) for name, fmt in FORMATS.items() if _fits(fmt, found)}
    for name, unexplained in strangers.items():
        if not unexplained:
            return _by_format(flat, name, branch, found, path)
    if not strangers and len(found) == 1 and branch == "online":
        choice = _by_prefix(flat, found[0], found, path)
        if all(key.startswith(choice.prefix + CLASSIFIER) for key in choice.dropped):
            return choice
    raise CheckpointError(f"{path}: {_why_unknown(strangers, found)}")


def _fits(fmt: Format, found: list[str]) -> bool:
    return any(prefix in found for prefix in fmt.online + fmt.target)


def _strangers(flat: Mapping[str, Tensor], fmt: Format) -> list[str]:
    return [key for key in flat if not key.startswith(fmt.dropped) and not _in_trunk(key, fmt)]


def _in_trunk(key: str, fmt: Format) -> bool:
    inner = [key.removeprefix(p) for p in fmt.online + fmt.target if key.startswith(p)]
    return any(TRUNK_KEY.match(name) or name.startswith(CLASSIFIER) for name in inner)


def _by_format(
    flat: Mapping[str, Tensor], name: str, branch: str, found: list[str], path: Path
) -> Choice:
    fmt = FORMATS[name]
    wanted = fmt.online if branch == "online" else fmt.target
    prefixes = [prefix for prefix in wanted if prefix in found]
    if not prefixes:
        raise CheckpointError(
            f"{path}: a {name} file without a {branch} branch; its trunks stand behind "
            f"{listed(found)}. Choose the other branch, or one of these prefixes as the branch"
        )
    choices = [_take(flat, name, prefix) for prefix in prefixes]
    for other in choices[1:]:
        if not _same(choices[0].inside, other.inside):
            raise CheckpointError(
                f"{path}: {choices[0].prefix!r} and {other.prefix!r} should be copies of one trunk "
                f"but differ, and both are the {branch} branch of a {name} file. Say which one is "
                f"meant: branch {choices[0].prefix!r} or {other.prefix!r}"
            )
    return choices[0]


def _by_prefix(flat: Mapping[str, Tensor], branch: str, found: list[str], path: Path) -> Choice:
    prefix = WRAPPER.sub("", branch if not branch or branch.endswith(".") else branch + ".")
    if prefix not in found:
        raise CheckpointError(
            f"{path}: no trunk behind the prefix {prefix!r}; there are trunks behind "
            f"{listed(found)}. The branch is online, target, or one of these prefixes"
        )
    return _take(flat, "prefix", prefix)


def _take(flat: Mapping[str, Tensor], name: str, prefix: str) -> Choice:
    unwanted = FORMATS[name].dropped if name in FORMATS else ()
    # what a format drops lies beside its trunk; only a trunk without prefix has it inside
    unwanted = (prefix + CLASSIFIER, *(u for u in unwanted if not prefix))
    inside = {k: v for k, v in flat.items() if k.startswith(prefix) and not k.startswith(unwanted)}
    dropped = tuple(key for key in flat if key not in inside)
    return Choice(name, prefix, {k.removeprefix(prefix): v for k, v in inside.items()}, dropped)


def _same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _why_unknown(strangers: Mapping[str, list[str]], found: list[str]) -> str:
    if not strangers:
        return (
            f"trunks stand behind {listed(found)}, a layout of no known code base, and which one "
            "is meant cannot be told. Pass one of these prefixes as the branch"
        )
    nearest = min(strangers, key=lambda name: len(strangers[name]))
    return (
        f"nearest to a {nearest} file, but {len(strangers[nearest])} of its keys are unexpected: "
        f"{listed(strangers[nearest])}. If the trunk is right all the same, pass its prefix as the "
        f"branch: {listed(found)}"
    )


OTHER_KINDS = (
    (r"patch_embed\.proj|\.attn\.qkv\.|encoder\.layers?\.\d+\..*attention", "a vision transformer"),
    (r"(?:^|\.)(?:conv1|stem)\.0\.weight$", "a ResNet with a deep stem (V1c/V1d)"),
    (r"(?:^|\.)stem\.conv1\.", "a network under Detectron2's names"),
    (r"embedder\.embedder\.convolution", "a ResNet under Hugging Face's names"),
    (r"_feature_blocks\.", "a VISSL trunk"),
)


def _why_no_trunk(flat: Mapping[str, Tensor]) -> str:
    way_out = "Only ResNet-18/34/50/101 under torchvision's names are read"
    for pattern, kind in OTHER_KINDS:
        key = next((k for k in flat if re.search(pattern, k)), None)
        if key is not None:
            return f"this looks like {kind} (it has {key!r}). {way_out}"
    stem = next((k for k in flat if k == "conv1.weight" or k.endswith(".conv1.weight")), None)
    if stem is None or "layer" in stem:
        return f"no 'conv1.weight' behind any prefix; its keys are {listed(list(flat))}. {way_out}"
    prefix = stem.removesuffix("conv1.weight")
    if not _is_stem(flat[stem]):
        shape = tuple(flat[stem].shape)
        return f"{stem!r} is {shape}, not a 7x7 stem on three channels. {way_out}"
    return f"{stem!r} is there but {prefix + 'layer4.0.conv1.weight'!r} is missing. {way_out}"
