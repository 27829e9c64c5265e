"""The settings of a Detectron2 YAML that would silently hurt weights, each with the line to write.

What changes the maps (pixels, stride, another network) is an error, and measured by running the
trunk under that one setting with all others right. What only departs from the way self-supervised
weights are fine-tuned (frozen layers, frozen statistics) is a warning.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from transfer.detectron2_names import depths, has_own_head
from transfer.engines.detectron2 import EXTRA_NORM_HEAD
from transfer.engines.recipe import trunk_values
from transfer.verify.detector_file import DetectorFile, Treatment
from transfer.verify.findings import Finding, VerifyError, setting
from transfer.verify.maps import Maps, Sides, equal, trunk_maps
from transfer.verify.yaml_chain import Chain, default

MEAN, STD, FORMAT = "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"
STRIDE, NORM = "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.RESNETS.NORM"
FREEZE, WEIGHTS, PRECISE = "MODEL.BACKBONE.FREEZE_AT", "MODEL.WEIGHTS", "TEST.PRECISE_BN.ENABLED"
DILATION, DEFORM = "MODEL.RESNETS.RES5_DILATION", "MODEL.RESNETS.DEFORM_ON_PER_STAGE"
FIELDS = {FORMAT: "channel_order", MEAN: "mean", STD: "std", STRIDE: "stride_in_1x1"}
BACKBONES = {  # of Detectron2, and whether a pyramid stands around the trunk
    "build_resnet_backbone": False,
    "build_resnet_fpn_backbone": True,
    "build_retinanet_resnet_fpn_backbone": True,
}
LEARNING_NORMS = ("BN", "SyncBN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN")
OTHER_NORMS = ("GN", "LN", "")
HEAD_NORMS = {
    "fpn": ("MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM"),
}


def layout_of(chain: Chain) -> str:
    """Kind of detector that a YAML builds, by where Detectron2 keeps the trunk's last stage."""
    if "fpn" in chain["MODEL.BACKBONE.NAME"]:
        return "fpn"
    return "dc5" if "res5" in chain["MODEL.RESNETS.OUT_FEATURES"] else "c4"


def treatment_of(chain: Chain) -> Treatment:
    """What a detector of this YAML does to pixels, and where it strides.

    Raises:
        VerifyError: channels that a ResNet on three colours cannot take in any order.
    """
    if chain[FORMAT] not in ("RGB", "BGR"):
        raise VerifyError(
            f"{chain.path}: {FORMAT} is {chain[FORMAT]!r} ({chain.where(FORMAT)}); the maps can be "
            f"compared for RGB and BGR only. Write {setting(FORMAT, 'RGB')}"
        )
    if not all(chain[STD]):
        raise VerifyError(f"{chain.path}: {MEAN} is divided by {STD} {list(chain[STD])}, a zero")
    return Treatment(chain[FORMAT], chain[MEAN], chain[STD], chain[STRIDE])


def pixel_findings(
    chain: Chain,
    file: DetectorFile,
    trunk: dict[str, Tensor],
    right: Maps,
    pictures: list[Path],
) -> list[Finding]:
    """Measure each of format, mean, std and stride that is not what the weights need."""
    given, found = treatment_of(chain), []
    for key, name in FIELDS.items():
        value, needed = getattr(given, name), getattr(file.needs, name)
        if value == needed:
            continue
        alone = replace(file.needs, **{name: value})
        levels = Sides(trunk, alone, right).levels(pictures)
        if equal(levels):
            # rounding, or a network without a bottleneck, which has no 1x1 to stride in
            text = f"{_shown(value)} ({chain.where(key)}) is not {_shown(needed)} and does no harm"
            found.append(Finding("note", key, text, levels=levels))
            continue
        text = f"{_shown(value)} ({chain.where(key)}), and the weights need {_shown(needed)}"
        text += _pattern(key, value, needed)
        found.append(Finding("error", key, text, f"Write {setting(key, needed)}", levels))
    return found


def together(
    chain: Chain, trunk: dict[str, Tensor], right: Maps, pictures: list[Path]
) -> dict[str, float]:
    """How far the maps are off under all of a YAML's settings at once."""
    return Sides(trunk, treatment_of(chain), right).levels(pictures)


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _pattern(key: str, value: Any, needed: Any) -> str:
    """Say what a wrong value looks like, where it is a well-known one."""
    if not isinstance(value, tuple):
        return ""
    if _close(value, needed[::-1]):
        return ": the right numbers in the other order of channels"
    if key == STD and set(value) == {1.0}:
        return ": right only where the division is part of the first convolution, as MSRA's"
    if _close([255 * v for v in value], needed):
        return ": on a scale of 0 to 1, while Detectron2's pixels are 0 to 255"
    return ""


def _close(one: Any, other: Any) -> bool:
    return all(abs(a - b) < 0.5 for a, b in zip(one, other, strict=True))


def network_findings(chain: Chain, file: DetectorFile) -> Iterator[Finding]:
    """Settings that build another network than the one that the weights belong to."""
    name = chain["MODEL.BACKBONE.NAME"]
    if name not in BACKBONES:
        text = (
            f"{name!r} is none of Detectron2's ResNets; what it does with the settings is unknown"
        )
        yield Finding("warning", "MODEL.BACKBONE.NAME", text)
    layout = layout_of(chain)
    is_ours = layout == "c4" and chain["MODEL.ROI_HEADS.NAME"] == EXTRA_NORM_HEAD
    if file.depth not in depths(layout) or not (is_ours or has_own_head(layout, file.depth)):
        text = f"builds a {layout} detector, whose head cannot be a ResNet-{file.depth}'s"
        way_out = "Use a recipe with a feature pyramid"
        if layout == "c4":
            way_out += f", or MODEL.ROI_HEADS.NAME {EXTRA_NORM_HEAD} of this suite"
        yield Finding("error", "MODEL.BACKBONE.NAME", text, way_out)
    wanted = {"NUM_GROUPS": 1} | trunk_values(file.depth, file.width)
    for short, value in wanted.items():
        key = f"MODEL.RESNETS.{short}"
        if chain[key] != value:
            yield Finding(
                "error",
                key,
                f"{chain[key]} ({chain.where(key)}); the weights are of a ResNet-{file.depth} of "
                f"width {file.width:g}, and what does not fit stays random",
                f"Write {setting(key, value)}",
            )
    yield from _other_convolutions(chain)


def _other_convolutions(chain: Chain) -> Iterator[Finding]:
    if chain[DILATION] != 1 and layout_of(chain) != "c4":
        text = f"{chain[DILATION]} ({chain.where(DILATION)}): res5 dilates its 3x3 convolutions "
        text += "and does not stride, which is not what was pretrained (usual in DC5 detectors)"
        way_out = f"Write {setting(DILATION, 1)}, unless it is meant"
        yield Finding("warning", DILATION, text, way_out)
    if any(chain[DEFORM]):
        modulated = chain["MODEL.RESNETS.DEFORM_MODULATED"]
        text = (
            f"{_shown(chain[DEFORM])} ({chain.where(DEFORM)}): the offsets are in no checkpoint; "
        )
        text += (
            "the modulation halves every map at the start" if modulated else "they start at zero"
        )
        way_out = f"Write {setting(DEFORM, default(DEFORM))}"
        yield Finding("error" if modulated else "warning", DEFORM, text, way_out)


def protocol_findings(chain: Chain) -> Iterator[Finding]:
    """Settings that leave the maps alone and change what fine-tuning does with them."""
    yield from _norm(chain)
    if chain[FREEZE] != 0:
        stages = ["the stem", *(f"res{i}" for i in range(2, chain[FREEZE] + 1))]
        text = f"{chain[FREEZE]} ({chain.where(FREEZE)}) freezes {' and '.join(stages)}; "
        text += "self-supervised weights are fine-tuned as a whole"
        yield Finding("warning", FREEZE, text, f"Write {setting(FREEZE, 0)}")
    if chain[NORM] in LEARNING_NORMS and not chain[PRECISE]:
        text = f"{chain[PRECISE]} ({chain.where(PRECISE)}): {NORM} {chain[NORM]} is evaluated with "
        text += "running averages of a few images each; MoCo's recipes recompute them first"
        yield Finding("warning", PRECISE, text, f"Write {setting(PRECISE, True)}")
    yield from _head_norms(chain)


def _norm(chain: Chain) -> Iterator[Finding]:
    norm, where = chain[NORM], chain.where(NORM)
    way_out = f"Write {setting(NORM, 'SyncBN')}"
    if norm == "FrozenBN":
        text = f"FrozenBN ({where}): scale, shift and statistics stay those of pretraining, "
        text += "while detectors of self-supervised weights train and synchronise them"
        yield Finding("warning", NORM, text, way_out)
    elif norm == "BN":
        text = f"BN ({where}): statistics of the one or two images of each GPU"
        yield Finding("note", NORM, text, f"{way_out} on several GPUs")
    elif norm in OTHER_NORMS:
        text = (
            f"{norm!r} ({where}): the weights' batch norms find no place, so that no map is right"
        )
        yield Finding("error", NORM, text, way_out)
    elif norm not in LEARNING_NORMS:
        yield Finding("error", NORM, f"{norm!r} ({where}) is no norm of Detectron2", way_out)


def _head_norms(chain: Chain) -> Iterator[Finding]:
    for key in HEAD_NORMS.get(layout_of(chain), ()):
        if key.startswith("MODEL.ROI_MASK_HEAD") and not chain["MODEL.MASK_ON"]:
            continue
        norm = chain[key] or "none"
        yield Finding("note", key, f"{norm} ({chain.where(key)}); recipes differ in it")
    if layout_of(chain) == "c4":
        name = chain["MODEL.ROI_HEADS.NAME"]
        text = f"{name} ({chain.where('MODEL.ROI_HEADS.NAME')})"
        if "ExtraNorm" not in name:
            text += "; recipes of self-supervised weights put one more norm behind res5"
        yield Finding("note", "MODEL.ROI_HEADS.NAME", text)


def weights_findings(chain: Chain, file: DetectorFile) -> Iterator[Finding]:
    """Whether the YAML would load the file that is verified."""
    name = chain[WEIGHTS]
    way_out = f"Write {setting(WEIGHTS, file.path)}, or give it on the command line"
    if not name:
        text = f"empty ({chain.where(WEIGHTS)}): without it training starts from random weights"
        yield Finding("note", WEIGHTS, text, way_out)
    elif not _same_file(name.split("?")[0], file.path):
        text = f"{name} ({chain.where(WEIGHTS)}) is not the verified file {file.path.name}"
        yield Finding("warning", WEIGHTS, text, way_out)


def _same_file(name: str, path: Path) -> bool:
    return "://" not in name and Path(name).is_file() and Path(name).samefile(path)


def right_maps(file: DetectorFile, trunk: dict[str, Tensor], pictures: list[Path]) -> Maps:
    """Maps of the weights, treated as they need."""
    return trunk_maps(trunk, file.needs, pictures)
