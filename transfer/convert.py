"""Stage: a checkpoint becomes weights that a detector, or torchvision, loads name by name.

``python -m transfer convert CHECKPOINT --layout c4 --out DIR``

``--rescale 0.1`` or ``--rescale-to ANCHOR`` gives the weights other norms first (transfer.rescale).
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sslbench.command import require_place
from sslbench.config import FrozenConfig, build
from sslbench.datasets import DataRoots
from sslbench.files import disk_errors_named, file_sha256, read_json
from sslbench.lock import LockedError, hold_lock
from sslbench.stage import StageContext, StageError, fingerprint, run_standalone, write_json

if TYPE_CHECKING:
    from sslbench.checkpoint import Backbone

Format = Literal["pkl", "pth", "safetensors"]
FORMATS = get_args(Format)
ENDINGS = ", .".join(FORMATS)
OTHER_ENDINGS = ("pt", "ckpt", "bin", "npz", "tar", "pickle")  # meant as a file, not as a folder
IDENTITY = ("fingerprint", "output")  # of a record: what was asked for, what came of it
DEFAULT_FORMAT = {"c4": "pkl", "fpn": "pkl", "torchvision": "pth"}


class ConvertConfig(FrozenConfig):
    """Which trunk of the checkpoint, under whose names, in which kind of file."""

    # where a detector keeps the last stage, box head or backbone; or torchvision's own names
    layout: Literal["c4", "fpn", "torchvision"]
    branch: str = Field(default="online", min_length=1)  # online, target, or a prefix
    # None: pkl for a detector, pth for torchvision
    format: Format | None = None
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

    @field_validator("format")
    @classmethod
    def _fits_the_layout(cls, value: str | None, info: ValidationInfo) -> str | None:
        layout = str(info.data.get("layout"))
        if layout == "torchvision" and value == "pkl":
            raise ValueError(
                "a pickle of arrays is what Detectron2 reads, and under torchvision's names it "
                "would leave almost every weight out without a word; choose pth or safetensors, "
                "or layout c4 or fpn"
            )
        return None if value == DEFAULT_FORMAT.get(layout) else value  # one hash for one outcome

    @property
    def suffix(self) -> str:
        """Ending of the written file."""
        return f".{self.format or DEFAULT_FORMAT[self.layout]}"


class ConvertError(ValueError):
    """A trunk that no detector of the wanted layout can take, or a place that is taken."""


@dataclass(frozen=True)
class Convert:
    """checkpoint -> weights under exact names, compared with the original trunk's maps."""

    kind: ClassVar[str] = "convert"
    version: ClassVar[int] = 2  # 2: of EMAHook's files the trained branch, not its average
    config_type: ClassVar[type[ConvertConfig]] = ConvertConfig
    config: ConvertConfig
    allow_pickle: bool = False  # whether files are opened; not hashed, for it changes no number

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
        return (rescaling_note(constant),)

    def run(self, ctx: StageContext) -> dict[str, str]:
        made = {"weights": f"weights{self.config.suffix}", "parity": "parity.json"}
        weights = ctx.dir / made["weights"]
        with _scratch_folder(weights) as scratch:
            self.write(ctx.inputs, scratch, weights, ctx.dir / made["parity"])
        return made

    def write(
        self,
        inputs: Mapping[str, Path],
        scratch: Path,
        weights: Path,
        parity: Path,
        **extra: Any,
    ) -> None:
        """Write the weights and the record of their parity; nothing where they fail the check.

        Args:
            scratch: where the weights lie until they are checked; on the same disk.
            extra: more for the record.

        Raises:
            ValueError: the checkpoint has no such trunk, it cannot be rescaled so, or the weights
                do not reproduce its maps.
        """
        from transfer.layouts import to_layout  # torch: not on the login node
        from transfer.parity import ParityError, check_parity
        from transfer.rescale import choose, describe
        from transfer.trunks import read_trunk
        from transfer.weights import write_weights

        config, checkpoint = self.config, inputs["checkpoint"]
        original, recorded = read_trunk(checkpoint, config.branch, self.allow_pickle)
        rescaling = choose(
            original,
            config.rescale,
            inputs.get("anchor"),
            config.anchor_branch,
            self.allow_pickle,
        )
        _require_possible(original, recorded, rescaling.metadata)
        backbone = rescaling.apply(original)
        arrays = {k: v.numpy() for k, v in to_layout(backbone.state, config.layout).items()}
        said = {**recorded, "layout": config.layout, **rescaling.metadata}
        unchecked = scratch / weights.name
        write_weights(unchecked, arrays, said)
        try:
            found = check_parity(backbone, unchecked, config.layout)
        except ParityError as error:
            raise ParityError(str(error).replace(str(unchecked), str(weights))) from None
        found |= describe(rescaling, original, backbone)
        files = {"input": _described(checkpoint), "output": _described(unchecked)}
        write_json(parity, {**found, "metadata": said, **files, **extra})
        os.replace(unchecked, weights)  # last: what stands under this name has been checked


def rescaling_note(constant: float | None) -> str:
    """What must stand beside numbers of rescaled weights; of an anchor's norms without one."""
    how = "to an anchor's" if constant is None else f"by {constant:g}"
    return f"weight norms rescaled {how} (NormRescale)"


def _require_possible(
    backbone: "Backbone", recorded: Mapping[str, Any], rescaled: Mapping[str, Any]
) -> None:
    if "rescale" in recorded and rescaled:
        raise ConvertError(
            f"the weight norms in {backbone.source} were rescaled before, and its record holds one "
            f"rescaling; rescale {recorded.get('source', 'the checkpoint')} itself"
        )


@contextlib.contextmanager
def _scratch_folder(final: Path) -> Iterator[Path]:
    """Yield a folder beside ``final``, for the name decides how Detectron2 reads a file.

    Its own name is always the same: what a killed conversion left there goes with the next one, and
    its lock keeps two conversions into one file apart.

    Raises:
        LockedError: another process writes ``final`` now.
    """
    folder = final.with_name(f".{final.name}.tmp")
    folder.mkdir(exist_ok=True)
    with hold_lock(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _described(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def as_asked(table: Mapping[str, Any], out: Path | None) -> tuple[ConvertConfig, Path | None, bool]:
    """Make the config of a command; also tell whether ``out`` names the file to write.

    Args:
        table: the options that are keys of the config.

    Raises:
        ConfigError: the options do not go together.
        ConvertError: the ending of ``out`` says another format, or one that is not written.
    """
    ending, written = out.suffix.removeprefix(".") if out else "", table["format"]
    is_file = ending in FORMATS
    if ending.lower() in (*FORMATS, *OTHER_ENDINGS) and not is_file:
        raise ConvertError(f"--out {out}: no such files are written; end it with .{ENDINGS}")
    if is_file and written not in (None, ending):
        raise ConvertError(f"--out {out} says {ending} but --format says {written}; leave one out")
    asked = {**table, "format": ending if is_file else written}
    config = build(ConvertConfig, asked, where="the command line")
    if out and not is_file:
        require_place("--out", out, is_folder=True)
    return config, out, is_file


def convert_to_folder(
    stage: Convert, inputs: Mapping[str, Path], out: Path | None
) -> tuple[Path, dict[str, str]]:
    """Run the stage; of a conversion that fails, no folder is left that was not there before.

    A folder that nothing came out of would be in the way of the mended file or option.

    Returns:
        Folder, and artifact -> path inside.
    """
    is_new = out is not None and not os.path.lexists(out)
    try:
        return run_standalone(stage, inputs=inputs, data=DataRoots(Path(".")), out=out)
    except (LockedError, StageError):
        raise  # by now it is another process's
    except ValueError:
        if out is not None and is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise


def convert_to_file(stage: Convert, inputs: Mapping[str, Path], weights: Path) -> Path:
    """Write a file of the user's naming, with its record beside it; nothing if both are there.

    Returns:
        The record, ``WEIGHTS.parity.json``.

    Raises:
        ConvertError: something else is there.
    """
    require_place("--out", weights)
    for name, path in inputs.items():
        if not path.is_file():
            raise ConvertError(f"{name}: {path} does not exist or is no file")
    parity = weights.with_name(f"{weights.name}.parity.json")
    require_place("the record of --out", parity)
    upstream = {name: f"sha256:{file_sha256(path)}" for name, path in inputs.items()}
    mark = fingerprint(stage, upstream, {})
    if _is_made(weights, parity, mark):
        return parity
    with disk_errors_named(weights):
        weights.parent.mkdir(parents=True, exist_ok=True)
        with _scratch_folder(weights) as scratch:
            if not _is_made(weights, parity, mark):  # by another process, a moment ago
                stage.write(inputs, scratch, weights, parity, fingerprint=mark)
    return parity


def _is_made(weights: Path, parity: Path, mark: str) -> bool:
    if not weights.exists():
        return False
    record = read_json(parity) if parity.exists() else None
    said = [record.get(key) for key in IDENTITY] if isinstance(record, dict) else None
    if said != [mark, _described(weights)]:
        raise ConvertError(
            f"{weights} is there already and is not what this command writes; "
            "choose another name, or delete it first"
        )
    return True


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
        "format": backbone.colour_order,
        "pixel_mean": list(PIXEL_MEAN),
        "pixel_std": list(PIXEL_STD),
        "stride_in_1x1": False,
        "notes": list(backbone.notes),
    }
