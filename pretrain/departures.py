"""Where a pretraining departs from the letter of the CYBORGS paper, in a few words a departure.

Only what the paper says counts, or BYOL, from which it takes its MLPs and augmentations: where both
are silent (temperature, crop interpolation, sampling of masks), nothing can depart.
docs/paper_versus_us.md gives the reasons.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pretrain.config import CyborgsConfig, PretrainConfig

Condition = Callable[[PretrainConfig], bool]


def _always(cfg: PretrainConfig) -> bool:
    return True


def _makes_masks(cfg: PretrainConfig) -> bool:
    return cfg.method.masks.source == "kmeans"


def _renews(cfg: PretrainConfig) -> bool:
    return _makes_masks(cfg) and cfg.method.refresh_masks_every > 0


def _warms_up(cfg: PretrainConfig) -> bool:
    return cfg.method.warmup_epochs > 0


def _has_period(cfg: PretrainConfig) -> bool:
    return cfg.method.clustering_every > 0


def _clusters_later(cfg: PretrainConfig) -> bool:
    return _has_period(cfg) and cfg.method.clustering.weight > 0


def _clusters(cfg: PretrainConfig) -> bool:
    return _warms_up(cfg) or _clusters_later(cfg)


def _has_kappa(cfg: PretrainConfig) -> bool:
    return _clusters(cfg) and cfg.method.clustering.distance == "vmf"


@dataclass(frozen=True)
class _Setting:
    """A number or choice that the paper gives."""

    keys: tuple[str, ...]
    paper: tuple[Any, ...]  # its values of the keys
    words: str
    applies: Condition = _always

    def departure(self, cfg: PretrainConfig) -> str:
        """Say "ours, not the paper's"; empty where they agree."""
        ours = tuple(operator.attrgetter(key)(cfg) for key in self.keys)
        if ours == self.paper or not self.applies(cfg):
            return ""
        return f"{self.words.format(_plain(ours))}, not {_plain(self.paper)}"


def _plain(values: tuple[Any, ...]) -> str:
    """Write one value, or the two ends of a range."""
    texts = (
        "+".join(v) if isinstance(v, tuple) else f"{v:g}" if isinstance(v, float) else str(v)
        for v in values
    )
    return "..".join(dict.fromkeys(texts))


# No two of them begin with the same word: a joined footnote says words that repeat only once.
SETTINGS = (
    _Setting(("images",), ("coco2017/train",), "images of {}"),
    _Setting(("schedule.epochs",), (800,), "epochs {}"),
    _Setting(("batch_size",), (64,), "batch {}"),
    _Setting(("optimizer.name",), ("lars",), "optimizer {}"),
    _Setting(("optimizer.lr",), (0.1,), "lr {}"),
    _Setting(("optimizer.weight_decay",), (1.5e-6,), "weight decay {}"),
    _Setting(("crop_size",), (224,), "crops of {}"),
    _Setting(("arch.depth",), (50,), "ResNet-{}"),
    _Setting(("arch.width",), (1.0,), "width {}"),
    _Setting(("method.warmup_epochs",), (5,), "W = {}"),
    _Setting(("method.refresh_masks_every",), (100,), "N = {}"),
    _Setting(("method.clustering_every",), (5,), "M = {}"),
    _Setting(("method.contrast_layers",), (("layer2", "layer3", "layer4"),), "contrast of {}"),
    _Setting(("method.contrast_grid",), (7,), "grid {}"),
    _Setting(("method.fusion",), ("bilinear",), "fusion {}"),
    _Setting(("method.normalise_layers",), (False,), "unit length of each layer {}"),
    _Setting(("method.mlp_norm",), ("rows",), "BatchNorm over {}"),  # BYOL's MLPs, Sec. 4.1
    _Setting(("method.last_bias",), (False,), "last bias {}"),
    _Setting(("method.views.saturation",), ("multiplied",), "saturation {}"),
    _Setting(("method.hidden",), (4096,), "MLPs {} wide"),
    _Setting(("method.embedding",), (256,), "embedding {}"),
    _Setting(("method.masks.source",), ("kmeans",), "masks from {}"),
    _Setting(("method.masks.layers",), (("layer2.2",),), "k-means of {}", _makes_masks),
    _Setting(("method.masks.images_per_clustering",), (16,), "mask groups of {}", _makes_masks),
    _Setting(
        ("method.masks.min_clusters", "method.masks.max_clusters"),
        (2, 256),
        "K of masks {}",
        _makes_masks,
    ),
    _Setting(("method.masks.iterations",), (20,), "iterations of k-means {}", _makes_masks),
    _Setting(("method.masks.fit_every",), (1,), "every n-th point fitted, n = {}", _makes_masks),
    _Setting(("method.masks.refine",), ("none",), "refinement {}", _makes_masks),
    _Setting(("method.masks.metric",), ("cosine",), "distance of masks {}", _makes_masks),
    _Setting(("method.refresh_masks_at",), ("start",), "new masks at the {} of an epoch", _renews),
    _Setting(("method.mask_ids",), (256,), "ids {}"),
    _Setting(("method.clustering.distance",), ("vmf",), "loss by {} distance", _clusters),
    _Setting(("method.clustering.metric",), ("cosine",), "prototypes by {}", _clusters),
    _Setting(("method.clustering.layer",), ("layer2.2",), "clustering of {}", _clusters),
    _Setting(("method.clustering.kappa",), (10.0,), "kappa = {}", _has_kappa),
    _Setting(("method.clustering.weight",), (0.1,), "lambda = {}", _has_period),
    _Setting(("method.clustering.warmup_clusters",), (8,), "warm-up K {}", _warms_up),
    _Setting(  # Algorithm 3 passes the warm-up's K again
        ("method.clustering.min_clusters", "method.clustering.max_clusters"),
        (8, 8),
        "later K {}",
        _clusters_later,
    ),
)


def departures_from_paper(cfg: PretrainConfig) -> tuple[str, ...]:
    """Name every departure that holds for ``cfg``: first its settings, then how it is computed."""
    if not isinstance(cfg.method, CyborgsConfig):
        return ()  # another paper's method
    settings = (setting.departure(cfg) for setting in SETTINGS)
    computed = {
        "weights of a checkpoint to start from": bool(cfg.init),
        # Algorithm 2 clusters the online map of one view and the target map of the other.
        "target prototypes for both views": _clusters(cfg)
        and cfg.method.clustering.prototypes == "target",
        # Eq. 3 writes the same cell [i, j] for both views, whose crops differ.
        "cells of two views paired by place": _clusters(cfg)
        and cfg.method.clustering.correspondence == "aligned",
        "nearest prototype of the other view": _clusters(cfg)
        and cfg.method.clustering.correspondence == "nearest",
        # Algorithm 3 updates a second time, on augmentations of its own.
        "one update for both losses": _clusters_later(cfg)
        and not cfg.method.clustering.separate_step,
        f"groups of {cfg.method.clustering.images_per_group} in the clustering, not the batch": (
            _clusters(cfg) and cfg.method.clustering.images_per_group < cfg.batch_size
        ),
    }
    return tuple(filter(None, (*settings, *(words for words, holds in computed.items() if holds))))
