"""The trunk to convert: of any checkpoint, or of weights that were converted before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslbench.checkpoint import Backbone, load_backbone
from sslbench.checkpoint.trunk import extract
from transfer.convert import metadata
from transfer.layouts import from_layout
from transfer.weights import TREATMENT, Arrays, WeightsError, is_weights, load_weights

FROM_METADATA = {
    "sha256": "sha256",
    "format": "checkpoint_format",
    "prefix": "prefix",
    "colour_order": "format",
}  # field of a trunk -> where the metadata has it


def read_trunk(path: Path, branch: str, allow_pickle: bool) -> tuple[Backbone, dict[str, Any]]:
    """Return the trunk, and where it comes from in the end, as ``metadata`` says it.

    Weights that were converted before hold one trunk and know its source, which stays on record.

    Args:
        branch: as for ``load_backbone``; of converted weights ``online``, or the branch they hold.
        allow_pickle: open pickles of other origin too; needless for converted weights.

    Raises:
        CheckpointError, WeightsError, NamingError: the file holds no such trunk.
    """
    if not is_weights(path):
        backbone = load_backbone(path, branch, allow_pickle)
        return backbone, metadata(backbone, "torchvision")
    arrays, recorded = load_weights(path)
    return _backbone(arrays, recorded, branch, path), recorded


def _backbone(arrays: Arrays, recorded: Mapping[str, Any], branch: str, path: Path) -> Backbone:
    names = (*("depth", "width", "layout", "branch"), *FROM_METADATA.values(), *TREATMENT)
    lacking = [name for name in names if name not in recorded]
    if lacking:
        raise WeightsError(f"{path} does not say its {lacking[0]}; convert the checkpoint again")
    held, layout = recorded["branch"], recorded["layout"]
    if branch not in ("online", held):
        raise WeightsError(
            f"{path} holds the {held} branch of {recorded.get('source')} and no other; "
            f"convert that checkpoint with branch {branch}"
        )
    inside = {name: torch.from_numpy(v) for name, v in from_layout(arrays, layout).items()}
    state, depth, width = extract(inside, f"{path}, layout {layout}")
    if (depth, width) != (recorded["depth"], recorded["width"]):
        raise WeightsError(
            f"{path} says that it holds a ResNet-{recorded['depth']} of width {recorded['width']} "
            f"but its tensors are a ResNet-{depth} of width {width:g}; it was changed after it was "
            "written. Convert the checkpoint again"
        )
    return Backbone(
        state=state,
        depth=depth,
        width=width,
        source=str(path),
        branch=held,
        dropped=(),
        counters={},
        notes=tuple(recorded.get("notes", ())),
        **{field: recorded[name] for field, name in FROM_METADATA.items()},
    )
