"""NormRescale: weight norms become an anchor's, layer by layer, and the maps stay what they were.

For every convolution l and the BatchNorm that follows it, with ``s = |anchor_l| / |w_l|`` or one
constant:

    w <- s w        running_mean <- s running_mean        running_var <- s^2 running_var

The scale and shift that BatchNorm learned stay. Only its epsilon, which is not scaled, can tell the
two networks apart: it weighs ``1 / s^2`` times as much as before.

LARS leaves norms about ten times as large as SGD does, and fine-tuning by SGD then hardly moves the
weights (Huang et al., ECCV 2022, arXiv 2208.00275; Sec. 2.4 of its supplement has other anchors).

Shape letters: B images, C channels, H x W pixels.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslbench import log
from sslbench.checkpoint import Backbone
from sslbench.files import file_sha256
from transfer.detectron2_trunk import EPSILON
from transfer.parity import canonical_maps, write_pictures
from transfer.trunks import read_trunk

# Relative RMS. Rightly used it stays below 0.4%; a trained network run in bfloat16 drifts by 0.5%;
# norms of SGD divided by ten, which is the mistake to find, drift by 1% to 24%.
LARGE_DRIFT = 0.01
NUM_NAMED = 3  # BatchNorm layers that a warning names


class RescaleError(ValueError):
    """Weight norms that cannot be made what was asked for."""


@dataclass(frozen=True)
class Rescaling:
    """Factors of convolutions, and where they come from; without factors nothing is rescaled."""

    source: Mapping[str, Any]  # for people
    factors: Mapping[str, float]  # name of the convolution -> s

    @property
    def metadata(self) -> dict[str, Any]:
        """What the written weights say about it: enough to do the same to the checkpoint again."""
        if not self.factors:
            return {}
        return {"rescale": {**self.source, "factors": dict(self.factors)}}

    def apply(self, backbone: Backbone) -> Backbone:
        """Return the rescaled trunk; the given one is not touched.

        Raises:
            RescaleError: a factor carries values out of the range of float32.
        """
        state = dict(backbone.state)
        for layer, factor in self.factors.items():
            norm = norm_after(layer)
            for name, scale in (
                (f"{layer}.weight", factor),
                (f"{norm}.running_mean", factor),
                (f"{norm}.running_var", factor**2),
            ):
                state[name] = _times(backbone, name, scale)
        return replace(backbone, state=state)


def choose(
    backbone: Backbone,
    constant: float | None,
    anchor_path: Path | None,
    anchor_branch: str | None,
    allow_pickle: bool = False,
) -> Rescaling:
    """Take the factors from a constant, from an anchor's file and branch, or from neither.

    Args:
        allow_pickle: as for ``read_trunk``, of the anchor.

    Raises:
        RescaleError: only one of file and branch is given, or they do not fit ``backbone``.
        CheckpointError, WeightsError: the file has no such trunk.
    """
    if anchor_path is not None and anchor_branch is not None:
        anchor, _ = read_trunk(anchor_path, anchor_branch, allow_pickle)
        # converted weights know their checkpoint's hash, but its norms may be other ones
        return to_anchor(backbone, replace(anchor, sha256=file_sha256(anchor_path)))
    if anchor_path is not None or anchor_branch is not None:
        only = f"branch {anchor_branch!r}" if anchor_path is None else f"file {anchor_path}"
        raise RescaleError(
            f"an anchor of weight norms is a file and a branch of it, but here is only the {only}. "
            "Give --rescale-to FILE, with --anchor-branch where it is not the online one"
        )
    return Rescaling({}, {}) if constant is None else by_constant(backbone, constant)


def by_constant(backbone: Backbone, constant: float) -> Rescaling:
    """Multiply every layer's weight norm by the same number.

    Raises:
        RescaleError: a layer has no norm.
    """
    norms = _positive_norms(backbone, "checkpoint")
    return Rescaling({"constant": constant}, dict.fromkeys(norms, constant))


def to_anchor(backbone: Backbone, anchor: Backbone) -> Rescaling:
    """Give every layer the weight norm that it has in ``anchor``.

    Raises:
        RescaleError: the anchor is another network, or a layer has no norm.
    """
    if (anchor.depth, anchor.width) != (backbone.depth, backbone.width):
        raise RescaleError(
            f"anchor {anchor.source} is a ResNet-{anchor.depth} of width {anchor.width:g}, but "
            f"{backbone.source} is a ResNet-{backbone.depth} of width {backbone.width:g}: norms "
            "are taken over layer by layer. Give an anchor of the same network, or --rescale 0.1"
        )
    norms = _positive_norms(backbone, "checkpoint")
    wanted = _positive_norms(anchor, "anchor")
    source = {
        "anchor": Path(anchor.source).name,
        "anchor_sha256": anchor.sha256,
        "anchor_branch": anchor.branch,
    }
    return Rescaling(source, {layer: wanted[layer] / norm for layer, norm in norms.items()})


def norm_after(layer: str) -> str:
    """Name the BatchNorm that follows a convolution: conv2 -> bn2, downsample.0 -> downsample.1."""
    return re.sub(r"conv(\d)$", r"bn\1", layer).replace("downsample.0", "downsample.1")


def weight_norms(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Euclidean norm of every convolution's whole weight."""
    return {
        name.removesuffix(".weight"): torch.linalg.vector_norm(value, dtype=torch.float64).item()
        for name, value in state.items()
        if value.ndim == 4
    }


def _positive_norms(backbone: Backbone, role: str) -> dict[str, float]:
    norms = weight_norms(backbone.state)
    for layer, norm in norms.items():
        if not norm > 0:
            raise RescaleError(
                f"{role} {backbone.source}: the weights of {layer} are all zero (norm {norm:g}), "
                "so that no factor gives them another norm. The layer was never trained or was "
                f"pruned away: take another {role}"
            )
    return norms


def _times(backbone: Backbone, name: str, scale: float) -> Tensor:
    before = backbone.state[name]
    after = (before.double() * scale).float()
    is_variance = name.endswith("running_var")
    if not torch.isfinite(after).all() or (is_variance and not (after > 0).all()):
        raise RescaleError(
            f"{backbone.source}: {name} (largest value {before.abs().max().item():g}) times "
            f"{scale:g} leaves the range of 32-bit numbers. Norms of LARS are about ten times "
            "those of SGD: rescale by a factor near 0.1, or to an anchor trained like it"
        )
    return after


def describe(rescaling: Rescaling, original: Backbone, rescaled: Backbone) -> dict[str, Any]:
    """Record what was done to every layer, and how far the maps are from the original's.

    A large drift is also said aloud. Nothing is recorded where nothing was rescaled.
    """
    if not rescaling.factors:
        return {}
    before, after = weight_norms(original.state), weight_norms(rescaled.state)
    layers = {
        layer: {
            "norm_before": before[layer],
            "norm_after": after[layer],
            "factor": factor,
            "variance_lost": _variance_lost(original, rescaled, norm_after(layer)),
        }
        for layer, factor in rescaling.factors.items()
    }
    drift = measure_drift(original, rescaled)
    warning = _warning(drift, layers)
    if warning is not None:
        log.info(f"warning: {warning}")
    return {
        "rescale": {**rescaling.source, "layers": layers},
        "drift": drift | {"warning": warning},
    }


def _variance_lost(original: Backbone, rescaled: Backbone, norm: str) -> float:
    """Share of a BatchNorm's output variance that the rescaling lets epsilon take away.

    The output of a channel has the variance ``gamma^2 var / (var + eps)``. The sum over channels
    counts what they contribute: a dead channel, which epsilon fills alone, weighs nothing.
    """
    before, after = (_output_variance(b.state, norm) for b in (original, rescaled))
    return 1 - after / before if before > 0 else 0.0


def _output_variance(state: Mapping[str, Tensor], norm: str) -> float:
    gamma_C, variance_C = (state[f"{norm}.{key}"].double() for key in ("weight", "running_var"))
    return (gamma_C**2 * variance_C / (variance_C + EPSILON)).sum().item()


def measure_drift(original: Backbone, rescaled: Backbone) -> dict[str, Any]:
    """Compare the maps of both trunks on the fixed pictures of the parity check."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_pictures(Path(folder))
        before, after = (canonical_maps(b, pictures) for b in (original, rescaled))
    levels = {level: _drift(maps_BCHW, after[level]) for level, maps_BCHW in before.items()}
    return {"levels": levels, "warned_above": LARGE_DRIFT}


def _drift(before_BCHW: Tensor, after_BCHW: Tensor) -> dict[str, float]:
    difference, reference = (after_BCHW - before_BCHW).double(), before_BCHW.double()
    return {
        "relative_max": _relative(difference.abs().max(), reference.abs().max()),
        "relative_rms": _relative(
            difference.square().mean().sqrt(), reference.square().mean().sqrt()
        ),
    }


def _relative(difference: Tensor, reference: Tensor) -> float:
    """Divide, but take the difference itself where the original map is all zero."""
    return (difference / reference if reference > 0 else difference).item()


def _warning(drift: Mapping[str, Any], layers: Mapping[str, Mapping[str, float]]) -> str | None:
    """Say which BatchNorm layers let the maps drift, where they drift far."""
    far = {k: v["relative_rms"] for k, v in drift["levels"].items()}
    far = {level: rms for level, rms in far.items() if not rms <= LARGE_DRIFT}
    if not far:
        return None
    worst = sorted(layers, key=lambda layer: -abs(layers[layer]["variance_lost"]))[:NUM_NAMED]
    named = ", ".join(f"{norm_after(n)} {layers[n]['variance_lost']:.1%}" for n in worst)
    shown = ", ".join(f"{level} {rms:.1%}" for level, rms in far.items())
    return (
        f"the rescaled trunk drifts from the original by {shown} RMS (at most {LARGE_DRIFT:.0%} is "
        f"usual). BatchNorm's epsilon changes the variance of its outputs most in {named}. "
        "Perhaps the checkpoint was not trained by LARS: compare its norms with an anchor's "
        "(rescale.layers in parity.json), and give a factor nearer to 1"
    )
