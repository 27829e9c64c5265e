"""The names that different code gives to the tensors of one and the same ResNet trunk.

Canonical are torchvision's. Every scheme lists its own template for each canonical one and what
stages, convolutions and statistics are called in it; both directions follow from that.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

STATS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
CANONICAL = (
    "conv1.weight",
    "bn1.{stat}",
    "{stage}.{block}.conv{index}.weight",
    "{stage}.{block}.bn{index}.{stat}",
    "{stage}.{block}.downsample.0.weight",
    "{stage}.{block}.downsample.1.{stat}",
)
VALUES = {
    "stage": ("layer1", "layer2", "layer3", "layer4"),
    "index": ("1", "2", "3"),
    "stat": STATS,
}
Rules = tuple[tuple[re.Pattern[str], str, Mapping[str, Mapping[str, str]]], ...]


@dataclass(frozen=True)
class Scheme:
    """One way to name a trunk.

    Args:
        templates: what stands for each of ``CANONICAL``, in that order.
        values: what a field's canonical values are called, in the order of ``VALUES``; fields that
            are not given keep their canonical values, and a shorter list lacks the rest.
        in_haiku: convolutions lie as (H, W, in, out) and statistics as (1, 1, 1, C).
    """

    templates: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    in_haiku: bool = False

    def canonical(self, name: str) -> str | None:
        """Return the canonical name, or None where the name is no trunk's."""
        return _translate(name, self._rules[1])

    def named(self, canonical: str) -> str | None:
        """Return this scheme's name, or None where the name is not canonical."""
        return _translate(canonical, self._rules[0])

    def in_torch(self, value: Tensor) -> Tensor:
        """Bring a value into torch's order of axes."""
        if not self.in_haiku:
            return value
        if value.ndim == 4 and value.shape[:3] != (1, 1, 1):
            return value.permute(3, 2, 0, 1)
        return value.reshape(-1) if value.shape[:-1] == (1,) * (value.ndim - 1) else value

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """Six names that every trunk has: two of the stem and one of each stage."""
        stages = (f"{stage}.0.conv1.weight" for stage in VALUES["stage"])
        return tuple(self.named(name) or name for name in ("conv1.weight", "bn1.weight", *stages))

    @cached_property
    def _rules(self) -> tuple[Rules, Rules]:
        ours = dict(VALUES)
        theirs = {name: self.values.get(name, values) for name, values in VALUES.items()}
        there = {k: dict(zip(v, theirs[k], strict=False)) for k, v in ours.items()}
        back = {k: {own: name for name, own in pairs.items()} for k, pairs in there.items()}
        pairs = tuple(zip(CANONICAL, self.templates, strict=True))
        return (
            tuple((_pattern(a, there), b, there) for a, b in pairs),
            tuple((_pattern(b, back), a, back) for a, b in pairs),
        )


def _pattern(template: str, values: Mapping[str, Mapping[str, str]]) -> re.Pattern[str]:
    groups = {name: f"(?P<{name}>{'|'.join(map(re.escape, v))})" for name, v in values.items()}
    escaped = re.sub(r"[.~]", r"\\\g<0>", template)
    return re.compile(escaped.format(block=r"(?P<block>\d+)", **groups))


def _translate(name: str, rules: Rules) -> str | None:
    for pattern, template, values in rules:
        match = pattern.fullmatch(name)
        if match is not None:
            fields = match.groupdict()
            return template.format(
                **{k: values[k][v] if k in values else v for k, v in fields.items()}
            )
    return None


TORCHVISION = Scheme(CANONICAL)
# The children of torchvision's network by number: 2 is the activation, 3 the pooling.
SEQUENTIAL = Scheme(("0.weight", "1.{stat}", *CANONICAL[2:]), {"stage": ("4", "5", "6", "7")})
DETECTRON2 = Scheme(
    (
        "stem.conv1.weight",
        "stem.conv1.norm.{stat}",
        "{stage}.{block}.conv{index}.weight",
        "{stage}.{block}.conv{index}.norm.{stat}",
        "{stage}.{block}.shortcut.weight",
        "{stage}.{block}.shortcut.norm.{stat}",
    ),
    {"stage": ("res2", "res3", "res4", "res5")},
)
HUGGING_FACE = Scheme(
    (
        "embedder.embedder.convolution.weight",
        "embedder.embedder.normalization.{stat}",
        "encoder.stages.{stage}.layers.{block}.layer.{index}.convolution.weight",
        "encoder.stages.{stage}.layers.{block}.layer.{index}.normalization.{stat}",
        "encoder.stages.{stage}.layers.{block}.shortcut.convolution.weight",
        "encoder.stages.{stage}.layers.{block}.shortcut.normalization.{stat}",
    ),
    {"stage": ("0", "1", "2", "3"), "index": ("0", "1", "2")},
)
HAIKU = Scheme(
    (
        "initial_conv/w",
        "initial_batchnorm/{stat}",
        "block_group_{stage}/~/block_{block}/~/conv_{index}/w",
        "block_group_{stage}/~/block_{block}/~/batchnorm_{index}/{stat}",
        "block_group_{stage}/~/block_{block}/~/shortcut_conv/w",
        "block_group_{stage}/~/block_{block}/~/shortcut_batchnorm/{stat}",
    ),
    {
        "stage": ("0", "1", "2", "3"),
        "index": ("0", "1", "2"),
        # of the moving averages "average" is the one without the bias of the first steps
        "stat": ("scale", "offset", "~/mean_ema/average", "~/var_ema/average"),
    },
    in_haiku=True,
)
SCHEMES: dict[str, Scheme] = {
    "torchvision": TORCHVISION,
    "sequential": SEQUENTIAL,
    "detectron2": DETECTRON2,
    "huggingface": HUGGING_FACE,
    "haiku": HAIKU,
}
