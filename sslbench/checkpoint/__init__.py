"""Any known checkpoint in, one canonical torchvision-named ResNet trunk out.

The canonical form has no classifier and no ``num_batches_tracked``: 265 tensors for a ResNet-50.
Nothing is guessed in silence: a file that is not fully understood is refused with what is missing,
unexpected or mis-shaped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sslbench.checkpoint.errors import CheckpointError
from sslbench.checkpoint.formats import BRANCHES, Choice, choose, flatten
from sslbench.checkpoint.reading import read_tensors
from sslbench.checkpoint.trunk import extract, extract_counters
from sslbench.files import file_sha256
from sslbench.resnet import ResNet

__all__ = ["Backbone", "CheckpointError", "inspect", "load_backbone"]


OWN_FORMAT, OWN_VERSION = "sslbench.pretrain", 1


@dataclass(frozen=True)
class Backbone:
    """A trunk taken out of a checkpoint, and where it was taken from."""

    state: Mapping[str, Tensor]  # canonical names, float32, contiguous
    depth: int
    width: float
    source: str  # path of the file
    branch: str  # as asked for: "online", "target" or a prefix
    sha256: str  # of the whole file
    format: str  # code base whose layout the file follows
    prefix: str  # what stood in front of the canonical names
    dropped: tuple[str, ...]  # keys that were recognised and left out
    counters: Mapping[str, Tensor]  # BatchNorm's numbers of batches, where the file has them

    def build(self) -> ResNet:
        """Make the network with these weights, in eval mode."""
        network = ResNet(self.depth, self.width)
        network.load_state_dict(dict(self.state))
        return network.eval()


def load_backbone(path: Path | str, branch: str = "online", allow_pickle: bool = False) -> Backbone:
    """Read ``path`` and return one of its trunks.

    Args:
        branch: ``online`` (student, query), ``target`` (teacher, momentum, key), or the prefix in
            front of ``conv1.weight`` for files of an unknown layout.
        allow_pickle: open also pickles that torch refuses; nothing that they name is called.

    Raises:
        CheckpointError: the file does not hold exactly such a trunk.
    """
    path = Path(path)
    raw = read_tensors(path, allow_pickle)
    return _backbone(raw, choose(flatten(raw, path), branch, path), branch, path)


def inspect(path: Path | str, allow_pickle: bool = False) -> dict[str, Any]:
    """Describe a file: format, hash, what each branch holds, and what the training recorded."""
    path = Path(path)
    raw = read_tensors(path, allow_pickle)
    flat = flatten(raw, path)
    branches: dict[str, Any] = {}
    for branch in BRANCHES:
        try:
            backbone = _backbone(raw, choose(flat, branch, path), branch, path)
        except CheckpointError as error:
            branches[branch] = str(error)
            continue
        fields = ("format", "prefix", "depth", "width")
        branches[branch] = {name: getattr(backbone, name) for name in fields}
        branches[branch] |= {"tensors": len(backbone.state), "dropped_keys": len(backbone.dropped)}
    plain = {k: v for k, v in raw.items() if isinstance(v, str | int | float)}
    return {
        "path": str(path),
        "sha256": file_sha256(path),
        "branches": branches,
        "recorded": {k: plain[k] for k in ("format", "version", "epoch", "step") if k in plain},
    }


def _backbone(raw: Mapping[str, Any], choice: Choice, branch: str, path: Path) -> Backbone:
    state, depth, width = extract(choice.inside, f"{path}, prefix {choice.prefix!r}")
    if raw.get("format") == OWN_FORMAT:
        _require_honest(raw, {"depth": depth, "width": width}, path)
    return Backbone(
        state=state,
        depth=depth,
        width=width,
        source=str(path),
        branch=branch,
        sha256=file_sha256(path),
        format=choice.format,
        prefix=choice.prefix,
        dropped=choice.dropped,
        counters=extract_counters(choice.inside, state),
    )


def _require_honest(raw: Mapping[str, Any], found: Mapping[str, float], path: Path) -> None:
    if raw.get("version") != OWN_VERSION:
        raise CheckpointError(
            f"{path}: version {raw.get('version')} of the pretraining format; this code reads "
            f"version {OWN_VERSION}. Use the release that wrote the file"
        )
    if raw.get("arch") != found:
        raise CheckpointError(
            f"{path}: says that it holds {raw.get('arch')} but its tensors are {found}; "
            "the file was changed after it was written. Take it from its run folder again"
        )
