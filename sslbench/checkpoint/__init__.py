"""Any known checkpoint in, one canonical torchvision-named ResNet trunk out.

The canonical form has no classifier and no ``num_batches_tracked``: 265 tensors for a ResNet-50.
Nothing is guessed in silence: a file that is not fully understood is refused with what is missing,
unexpected or mis-shaped.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sslbench.checkpoint.choice import BY_PREFIX, Choice, choose
from sslbench.checkpoint.errors import CheckpointError
from sslbench.checkpoint.formats import BRANCHES, FORMATS
from sslbench.checkpoint.origin import recorded, require_known_pixels, require_plain_resnet
from sslbench.checkpoint.reading import read_tensors
from sslbench.checkpoint.sections import Contents, lay_out
from sslbench.checkpoint.trunk import extract, extract_counters
from sslbench.files import file_sha256
from sslbench.resnet import ResNet

__all__ = ["Backbone", "CheckpointError", "inspect", "load_backbone", "state_digest"]


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
    notes: tuple[str, ...] = ()  # what its user must know and the weights do not show
    colour_order: str = "RGB"  # of the pixels it was trained on; no other is read

    def build(self) -> ResNet:
        """Make the network with these weights, in eval mode."""
        network = ResNet(self.depth, self.width)
        network.load_state_dict(dict(self.state))
        return network.eval()


def load_backbone(path: Path | str, branch: str = "online", allow_pickle: bool = False) -> Backbone:
    """Read ``path`` and return one of its trunks.

    Args:
        branch: ``online`` (student, query), ``target`` (teacher, momentum, key), or for files of an
            unknown layout the prefix in front of the stem's name (``.`` where there is none).
        allow_pickle: open also pickles that torch refuses; nothing that they name is called.

    Raises:
        CheckpointError: the file does not hold exactly such a trunk.
    """
    path = Path(path)
    raw = read_tensors(path, allow_pickle)
    return _backbone(raw, lay_out(raw, path), branch, path, file_sha256(path))


def inspect(path: Path | str, allow_pickle: bool = False) -> dict[str, Any]:
    """Describe a file: its hash, each branch, every trunk in it and what the training recorded."""
    path = Path(path)
    raw = read_tensors(path, allow_pickle)
    contents, sha256 = lay_out(raw, path), file_sha256(path)
    branches: dict[str, Any] = {}
    for branch in BRANCHES:
        try:
            branches[branch] = _described(_backbone(raw, contents, branch, path, sha256))
        except CheckpointError as error:
            branches[branch] = str(error)
    return {
        "path": str(path),
        "sha256": sha256,
        "branches": branches,
        "trunks": [{"prefix": t.prefix, "names": t.scheme} for t in contents.trunks],
        "recorded": recorded(raw),
    }


def _described(backbone: Backbone) -> dict[str, Any]:
    fields = ("format", "prefix", "depth", "width", "colour_order", "notes")
    return {
        **{name: getattr(backbone, name) for name in fields},
        "tensors": len(backbone.state),
        "digest": state_digest(backbone.state),
        "dropped_keys": len(backbone.dropped),
    }


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Hash names, shapes and values of a canonical state: equal trunks of two files are equal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _backbone(
    raw: Mapping[str, Any], contents: Contents, branch: str, path: Path, sha256: str
) -> Backbone:
    choice = choose(contents, branch, path)
    if choice.format != BY_PREFIX:
        require_plain_resnet(raw, path)
    if choice.format == "Detectron2":
        require_known_pixels(raw, path)
    state, depth, width = extract(choice.inside, _where(choice, path))
    if raw.get("format") == OWN_FORMAT:
        _require_honest(raw, {"depth": depth, "width": width}, path)
    return Backbone(
        state=state,
        depth=depth,
        width=width,
        source=str(path),
        branch=branch,
        sha256=sha256,
        format=choice.format,
        prefix=choice.prefix,
        dropped=choice.dropped,
        counters=extract_counters(choice.inside, state),
        notes=FORMATS[choice.format].notes if choice.format in FORMATS else (),
    )


def _where(choice: Choice, path: Path) -> str:
    kind = "" if choice.format == BY_PREFIX else f", layout of {choice.format}"
    return f"{path}{kind}, prefix {choice.prefix!r}"


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
