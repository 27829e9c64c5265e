"""Where a run stands, saved and restored exactly.

The file has the suite's own checkpoint format: only tensors and plain containers, so that it loads
with ``weights_only=True``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.config import PretrainConfig
from sslbench.config import departures
from sslbench.files import write_torch

FORMAT, VERSION = "sslbench.pretrain", 1


class ResumeError(ValueError):
    """A checkpoint in the run folder that this run cannot continue."""


class DivergedError(ValueError):
    """A loss or weights that are no longer finite."""


class NotFiniteError(ValueError):
    """Features of a step that are not finite, before there is a loss; raised on every process."""


def save(
    path: Path, method: nn.Module, optimizer: Optimizer, cfg: PretrainConfig, epoch: int, step: int
) -> None:
    """Write a checkpoint atomically.

    Args:
        epoch: number of finished epochs.
        step: number of finished steps.

    Raises:
        DivergedError: a weight is not finite; the file that is there stays.
    """
    _require_finite(method, epoch, step, path)
    payload = {
        **_header(cfg, epoch, step),
        "precision": method.precision,
        "model": method.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    _write(path, payload)


def dump(
    path: Path,
    method: nn.Module,
    cfg: PretrainConfig,
    step: int,
    indices_B: Tensor,
    terms: dict[str, float],
) -> None:
    """Write what led to a loss that is not finite, for whoever looks for the cause."""
    found = {"model": method.state_dict(), "indices": indices_B, "terms": terms}
    _write(path, {**_header(cfg, -1, step), **found})


def save_untrained(path: Path, backbone: nn.Module, cfg: PretrainConfig) -> None:
    """Write a trunk without training state, in the same format."""
    model = {f"online.backbone.{k}": v for k, v in backbone.state_dict().items()}
    _write(path, {**_header(cfg, 0, 0), "model": model})


def _write(path: Path, payload: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_torch(path, payload)


def _header(cfg: PretrainConfig, epoch: int, step: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "arch": {"depth": cfg.arch.depth, "width": cfg.arch.width},
        "epoch": epoch,
        "step": step,
        "config": json.loads(cfg.model_dump_json()),
        "departures": departures(cfg),
    }


def _require_finite(method: nn.Module, epoch: int, step: int, path: Path) -> None:
    norms = torch.stack(torch._foreach_norm(list(method.parameters())))
    if not bool(torch.isfinite(norms).all()):
        raise DivergedError(
            f"the weights are not finite after step {step} (epoch {epoch}); "
            f"{path} keeps the state of the last save. Lower optimizer.lr or lengthen "
            "schedule.lr_warmup_epochs, and start a new run folder"
        )


def restore(path: Path, method: nn.Module, optimizer: Optimizer, cfg: PretrainConfig) -> int:
    """Load a checkpoint of the same config into ``method`` and ``optimizer``.

    The method goes on in the precision that the run began with, wherever it is now.

    Returns:
        The number of finished steps.

    Raises:
        ResumeError: the file is unreadable, or another config made it; the keys are named.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports a broken file in many ways
        raise ResumeError(
            f"{path} cannot be read ({error}); delete it to start this run again"
        ) from error
    if saved.get("format") != FORMAT or saved.get("version") != VERSION:
        raise ResumeError(
            f"{path} is no {FORMAT} checkpoint of version {VERSION}; choose another folder"
        )
    differing = differing_keys(saved["departures"], departures(cfg))
    if differing:
        raise ResumeError(
            f"{path} was made by another config; what differs: {', '.join(differing)}. "
            "Choose another folder, or delete this one to start over"
        )
    method.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    method.precision = saved["precision"]
    step: int = saved["step"]
    return step


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ between two nested tables."""
    before, after = _flatten(old), _flatten(new)
    return sorted(k for k in {*before, *after} if before.get(k) != after.get(k))


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inner = (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
        flat |= inner
    return flat
