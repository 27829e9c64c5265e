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
    from transfer.rescale import Rescaling


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
        from transfer.weights import write_weights

        original = load_backbone(ctx.inputs["checkpoint"], branch=self.config.branch)
        rescaling = self._rescaling(original, ctx.inputs.get("anchor"))
        backbone = original if rescaling is None else rescaling.apply(original)
        layout = self.config.layout
        if layout == "c4" and backbone.depth < 50:
            raise ConvertError(
                f"{backbone.source} is a ResNet-{backbone.depth}; a C4 detector's head is made of "
                "bottleneck blocks (ResNet-50, -101). Use layout fpn"
            )
        arrays = {k: v.numpy() for k, v in to_detectron2(backbone.state, layout).items()}
        weights_path = ctx.dir / "weights.pkl"
        described = {} if rescaling is None else {"rescale": dict(rescaling.source)}
        write_weights(weights_path, arrays, metadata(backbone, layout) | described)
        record = check_parity(backbone, weights_path, layout)
        if rescaling is not None:
            record |= _described(rescaling, original, backbone)
        write_json(ctx.dir / "parity.json", record)
        return {"weights": "weights.pkl", "parity": "parity.json"}

    def _rescaling(self, original: "Backbone", anchor_path: Path | None) -> "Rescaling | None":
        from sslbench.checkpoint import load_backbone
        from transfer.rescale import by_constant, to_anchor

        branch = self.config.anchor_branch
        if (branch is None) != (anchor_path is None):
            raise ConvertError(
                "an anchor of weight norms is a file and a branch of it, but here is only "
                f"{f'the branch {branch!r}' if branch else f'the file {anchor_path}'}. Give "
                "--rescale-to FILE, with --anchor-branch where it is not the online one"
            )
        if branch is not None and anchor_path is not None:
            return to_anchor(original, load_backbone(anchor_path, branch=branch))
        constant = self.config.rescale
        return None if constant is None else by_constant(original, constant)


def _described(rescaling: "Rescaling", original: "Backbone", rescaled: "Backbone") -> Any:
    from sslbench import log
    from transfer.rescale import describe

    record = describe(rescaling, original, rescaled)
    if record["drift"]["warning"]:
        log.info(f"warning: {record['drift']['warning']}")
    return record


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
