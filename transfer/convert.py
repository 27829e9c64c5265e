"""Stage: a pretraining checkpoint becomes weights that a Detectron2 detector loads name by name.

``python -m transfer convert CHECKPOINT --layout c4 --out DIR``

``--rescale 0.1`` or ``--rescale-to ANCHOR`` gives the weights other norms first (transfer.rescale).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sslbench.config import FrozenConfig
from sslbench.stage import StageContext, write_json

if TYPE_CHECKING:
    from sslbench.checkpoint import Backbone


class ConvertConfig(FrozenConfig):
    """Which trunk of the checkpoint, and for which kind of detector."""

    layout: Literal["c4", "fpn"]  # where the detector keeps the last stage: box head or backbone
    branch: str = Field(default="online", min_length=1)  # online, target, or a prefix
    rescale: float | None = Field(default=None, gt=0)  # factor of every layer's weight norm
    # branch of the input "anchor", whose weight norms the trunk takes over
    anchor_branch: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _rescales_in_one_way(self) -> Self:
        if self.rescale is not None and self.anchor_branch is not None:
            raise ValueError(
                f"weight norms are rescaled by a constant ({self.rescale:g}) or to those of an "
                "anchor, not both: drop one"
            )
        return self


class ConvertError(ValueError):
    """A trunk that no detector of the wanted layout can take."""


@dataclass(frozen=True)
class Convert:
    """checkpoint -> weights under exact names, compared with the original trunk's maps."""

    kind: ClassVar[str] = "convert"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[ConvertConfig]] = ConvertConfig
    config: ConvertConfig

    @property
    def label(self) -> str:
        config = self.config
        target = "-target" if config.branch == "target" else ""
        constant = "" if config.rescale is None else f"-rescaled-{config.rescale:g}"
        return config.layout + target + constant + ("-anchored" if config.anchor_branch else "")

    def needs(self) -> tuple[str, ...]:
        return ()

    def footnotes(self) -> tuple[str, ...]:
        constant, is_anchored = self.config.rescale, self.config.anchor_branch is not None
        if constant is None and not is_anchored:
            return ()
        how = "to an anchor's" if is_anchored else f"by {constant:g}"
        return (f"weight norms rescaled {how} (NormRescale)",)

    def run(self, ctx: StageContext) -> dict[str, str]:
        from sslbench.checkpoint import load_backbone  # torch: not on the login node
        from transfer.naming import to_detectron2
        from transfer.parity import check_parity
        from transfer.rescale import choose, describe
        from transfer.weights import write_weights

        config = self.config
        original = load_backbone(ctx.inputs["checkpoint"], branch=config.branch)
        rescaling = choose(original, config.rescale, ctx.inputs.get("anchor"), config.anchor_branch)
        backbone = rescaling.apply(original)
        layout = config.layout
        if layout == "c4" and backbone.depth < 50:
            raise ConvertError(
                f"{backbone.source} is a ResNet-{backbone.depth}; a C4 detector's head is made of "
                "bottleneck blocks (ResNet-50, -101). Use layout fpn"
            )
        arrays = {k: v.numpy() for k, v in to_detectron2(backbone.state, layout).items()}
        weights_path = ctx.dir / "weights.pkl"
        write_weights(weights_path, arrays, metadata(backbone, layout) | rescaling.metadata)
        record = check_parity(backbone, weights_path, layout)
        write_json(ctx.dir / "parity.json", record | describe(rescaling, original, backbone))
        return {"weights": "weights.pkl", "parity": "parity.json"}


def metadata(backbone: "Backbone", layout: str) -> dict[str, Any]:
    """Say where the weights come from and what a detector must do to its pixels."""
    from sslbench.resnet import PIXEL_MEAN, PIXEL_STD

    return {
        "source": Path(backbone.source).name,
        "sha256": backbone.sha256,
        "branch": backbone.branch,
        "prefix": backbone.prefix,
        "checkpoint_format": backbone.format,
        "depth": backbone.depth,
        "width": backbone.width,
        "layout": layout,
        "format": "RGB",
        "pixel_mean": list(PIXEL_MEAN),
        "pixel_std": list(PIXEL_STD),
        "stride_in_1x1": False,
    }
