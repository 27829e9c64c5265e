"""Make masks outside a pretraining: ``python -m pretrain.masks make masks/fh --images photos/``.

The same command continues an interrupted store and reuses a finished one; torchrun and srun share
the work among their processes.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator

from pretrain.config import FIXED_SOURCES, STORED, MaskConfig, Precision
from pretrain.masks.ground_truth import Annotations
from pretrain.masks.kmeans_faiss import require_faiss
from pretrain.masks.network import read_network
from pretrain.masks.parts import PARTIAL, parts_of, require_same
from pretrain.masks.refresh import Bootstrap, refresh
from pretrain.masks.refresh import manifest_of as bootstrapped_manifest
from pretrain.masks.sources import SLOW, make_fixed_masks, require_source
from pretrain.masks.sources import manifest_of as fixed_manifest
from pretrain.masks.store import REMAKE, MaskError, MaskStore, broken_link
from pretrain.masks.verify import problems
from sslbench import dist, log
from sslbench.config import ConfigError, apply_overrides, build
from sslbench.datasets import DataRoots, ImageList, images, images_id, is_data_spec
from sslbench.device import prepare_device
from sslbench.lock import hold_lock
from sslbench.precision import resolved

OUTSIDE = 0  # the epoch of masks that no pretraining makes


class MakeConfig(MaskConfig):
    """The keys of ``make``: those of a pretraining's masks, and what the run says there."""

    seed: int = Field(default=0, ge=0)
    precision: Precision = "auto"  # of the network; bf16 on a GPU, fp32 on the CPU

    @model_validator(mode="after")
    def _masks_are_made(self) -> Self:
        if self.source == STORED:
            raise ValueError(
                f"source={STORED!r} reads masks that are there already; to make some give "
                "kmeans, felzenszwalb or another source"
            )
        return self

    @property
    def is_fixed(self) -> bool:
        """Whether no network makes them."""
        return self.source in FIXED_SOURCES


@dataclass(frozen=True)
class Order:
    """What is to be made of which images, by which network.

    Args:
        images: folder, list, tar or split.
        checkpoint: of any known format; for ``kmeans`` alone.
        branch: of the checkpoint; by default ``online``.

    Raises:
        ConfigError: the source lacks something, or is given what it has no use for.
    """

    images: str
    config: MakeConfig
    checkpoint: Path | None = None
    branch: str | None = None

    @classmethod
    def read(
        cls, images: str, overrides: Sequence[str], checkpoint: Path | None, branch: str | None
    ) -> Self:
        """Read ``key=value`` words.

        Raises:
            ConfigError: a key or value is wrong; the message says which.
        """
        table: dict[str, Any] = {}
        apply_overrides(table, overrides)
        return cls(images, build(MakeConfig, table, "masks make"), checkpoint, branch)

    def __post_init__(self) -> None:
        if self.config.is_fixed:
            self._refuse_what_has_no_effect()
        elif self.checkpoint is None:
            raise ConfigError(
                "source='kmeans' clusters the features of a network: add --checkpoint FILE, or "
                "give a source that needs none, as source=felzenszwalb"
            )
        if self.config.source == "ground_truth" and not is_data_spec(self.images):
            raise ConfigError(
                f"source='ground_truth' needs annotations, and --images {self.images} has none: "
                "give a data set with masks, as --images coco2017/train"
            )

    def _refuse_what_has_no_effect(self) -> None:
        options = {"--checkpoint": self.checkpoint, "--branch": self.branch}
        given = [f"{name} {value}" for name, value in options.items() if value is not None]
        keys = sorted(self.config.model_fields_set - {"source"})
        given += [f"{key}={getattr(self.config, key)}" for key in keys]
        if given:
            raise ConfigError(
                f"source={self.config.source!r} depends on the images alone, so that "
                f"{', '.join(given)} would change nothing: leave it out, or give source=kmeans"
            )


@dataclass(frozen=True)
class _Work:
    """What decides the masks, and how to make them in a folder."""

    manifest: dict[str, Any]
    make: Callable[[Path], MaskStore]


def make_store(
    folder: Path,
    order: Order,
    roots: DataRoots,
    device: str = "auto",
    num_workers: int = 0,
) -> MaskStore:
    """Make the masks, or finish or reuse what is in ``folder``.

    Args:
        device: of the network.
        num_workers: processes that help each process of the run.

    Raises:
        ConfigError: nothing can be made there, or something given has no effect.
        MaskError: the folder holds something else, or is damaged.
    """
    _require_name(folder)
    _require_place(folder)
    _refuse_idle(order.config, device, num_workers)
    wanted = "cpu" if order.config.is_fixed else prepare_device(device)
    with dist.process_group(wanted) as mine:
        listed = images(order.images, roots)
        if order.config.is_fixed:
            work = _fixed(order, listed, roots, num_workers)
        else:
            work = _bootstrapped(order, listed, torch.device(mine), num_workers)
        finished = _look(folder, work.manifest)
        if finished is not None:
            return finished
        with _alone(folder) if dist.is_main() else contextlib.nullcontext():
            dist.barrier()
            # another command may have made it before this one held the lock
            finished = _look(folder, work.manifest)
            return work.make(folder) if finished is None else finished


def _look(folder: Path, manifest: Mapping[str, Any]) -> MaskStore | None:
    """Open what is there and fits; nobody writes before every process has looked."""
    require_same(folder, manifest)
    finished = _opened_if_finished(folder, manifest["images_id"])
    dist.barrier()
    return finished


def _require_name(folder: Path) -> None:
    key, equals, _ = folder.name.partition("=")
    if not folder.name or folder.suffix == PARTIAL or (equals and key in MakeConfig.model_fields):
        raise ConfigError(
            f"STORE {str(folder)!r} is no name for a folder of masks: it comes first, as masks/fh, "
            f"before key=value, and may not end in {PARTIAL}"
        )


def _require_place(folder: Path) -> None:
    """Refuse before the work what could not be written after it."""
    links = (broken_link(place) for place in (folder, parts_of(folder), *folder.parents))
    told = next(filter(None, links), "")
    nearest = next((place for place in folder.parents if place.exists()), folder.parent)
    if not told and not nearest.is_dir():
        told = f"{nearest} is no folder"
    if told:
        raise ConfigError(f"no masks can be made at {folder}: {told}. Give another STORE")


def _refuse_idle(cfg: MakeConfig, device: str, num_workers: int) -> None:
    """Refuse what a fixed source has no use for."""
    given = []
    if cfg.is_fixed and device != "auto":
        given.append(f"--device {device}")
    if cfg.is_fixed and cfg.source not in SLOW and num_workers:
        given.append(f"--workers {num_workers}")
    if given:
        raise ConfigError(
            f"source={cfg.source!r} is made by this process on the CPU, so that "
            f"{' and '.join(given)} would change nothing: leave it out"
        )


def _fixed(order: Order, listed: ImageList, roots: DataRoots, num_workers: int) -> _Work:
    source, identity = order.config.source, images_id(listed)
    require_source(source)
    annotations = Annotations(order.images, roots) if source == "ground_truth" else None

    def make(folder: Path) -> MaskStore:
        options = {"annotations": annotations, "num_workers": num_workers}
        return make_fixed_masks(source, listed, identity, folder, log, **options)

    return _Work(fixed_manifest(source, identity, annotations), make)


def _bootstrapped(order: Order, listed: ImageList, device: torch.device, num_workers: int) -> _Work:
    cfg, identity = order.config, images_id(listed)
    if cfg.backend == "faiss":
        require_faiss()
    assert order.checkpoint is not None, "an order without one is refused"
    network = read_network(order.checkpoint, order.branch or "online").to(device)
    precision = resolved(cfg.precision, device)
    settings = Bootstrap.build(cfg, seed=cfg.seed, epoch=OUTSIDE, precision=precision)

    def make(folder: Path) -> MaskStore:
        return refresh(network, listed, identity, folder, settings, log, num_workers)

    return _Work(bootstrapped_manifest(network, identity, settings), make)


def _opened_if_finished(folder: Path, identity: str) -> MaskStore | None:
    if not folder.exists():
        return None
    found = next(problems(folder), "")
    if found:
        found = found.removesuffix(f". {REMAKE}")
        raise MaskError(f"{found}: delete {folder} and run the same command again")
    return MaskStore(folder, identity)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second command off this store, and sweep what a killed one left beside it."""
    parts_dir = parts_of(folder)
    parts_dir.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(parts_dir):
            scratch = re.compile(rf"\.{re.escape(folder.name)}\.\d+-\w+\.tmp")
            for left in folder.parent.iterdir():
                if scratch.fullmatch(left.name):
                    shutil.rmtree(left)
            yield
    finally:
        with contextlib.suppress(OSError):  # it is gone, or holds parts
            parts_dir.rmdir()
