"""One gradient step in parts: over the processes of a run, and one after the other in each.

Part k of n holds the batch's images k*m to (k+1)*m - 1 and draws its anchors and regions from
(seed, iteration, k), so that two processes, or two parts on one, make the same step up to rounding.

The step's gradient is the mean of the parts' gradients, and so is each loss term. That is what
Detectron2 computes on as many GPUs, of which the published protocols use eight. It equals the
gradient of the undivided batch, for given anchors and regions, where

- ``loss_rpn_cls`` and ``loss_rpn_loc`` are concerned: they are divided by a fixed number per image;
- ``loss_cls`` and ``loss_box_reg`` are, as long as every part samples equally many regions: they
  are divided by that number, which falls below its limit only where proposals run out;

and does not equal it

- in ``loss_mask``, which averages over the regions that hold an object: one of a part with few of
  them counts for more;
- wherever batch norm is not frozen: it sees one part of every process at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslbench import dist
from sslbench.config import ConfigError
from sslbench.memory import SharedBatch
from transfer.engines.recipe import Recipe

NORMS = ("MODEL.RESNETS", "MODEL.FPN", "MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD")
ALIKE = ("", "SyncBN", "nnSyncBN", "FrozenBN", "GN", "LN")  # on any number of processes


def shared_batch(recipe: Recipe, accumulate: int) -> SharedBatch:
    """The recipe's batch, shared by processes and parts."""
    size = recipe["SOLVER.IMS_PER_BATCH"]
    smaller = "set.INPUT.MIN_SIZE_TRAIN"
    return SharedBatch(size, accumulate, "set.SOLVER.IMS_PER_BATCH", smaller)


def require_shareable(recipe: Recipe, batch: SharedBatch) -> None:
    """Refuse what would make another protocol of a run on several processes.

    Raises:
        ConfigError: the batch cannot be shared equally, or a norm sees one process alone.
    """
    batch.require_equal_parts()
    for group in NORMS:
        norm = recipe[f"{group}.NORM"]
        if dist.world_size() > 1 and norm not in ALIKE:
            raise ConfigError(
                f"{recipe.name}: {group}.NORM {norm!r} normalises over one process alone, so that "
                f"{dist.world_size()} processes would give other numbers than one; set it to "
                "'SyncBN', or start one process (accumulate makes a large batch fit)"
            )


def place(part: int, accumulate: int) -> tuple[int, ...]:
    """Number of this process's part among all of a step; nothing where there is only one."""
    if dist.world_size() * accumulate == 1:
        return ()
    return (dist.rank() * accumulate + part,)


def split(batch: Sequence[Any], accumulate: int) -> list[Sequence[Any]]:
    """Cut a process's share of a batch into equal parts, in order."""
    size = len(batch) // accumulate
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def mean_terms(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average each loss term over the parts."""
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over the processes; one that a process lacks is zero."""
    if dist.world_size() == 1:
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    dist.average_gradients([p.grad for p in trained if p.grad is not None])
