"""The same course in fewer or more epochs: milestones move in proportion to the run's length."""

import math
from collections.abc import Mapping
from typing import Any

PAPER_EPOCHS = 800
# Milestones and what they are where a config does not say: the paper's, for 800 epochs.
PAPER_MILESTONES: dict[tuple[str, str], Any] = {
    ("method", "warmup_epochs"): 5,
    ("method", "refresh_masks_every"): 100,
    ("schedule", "lr_warmup_epochs"): 10,
    ("schedule", "lr_drops"): (768, 784),
    ("schedule", "keep_epochs"): (5, 25, 50, 100, 200, 500, 800),
}


def rescaled(table: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve ``schedule.rescale``: return the config's table with moved milestones.

    Warm-up W, period N of the masks, warm-up and drops of the learning rate and kept epochs are
    multiplied by ``epochs / milestones_of`` and rounded to the nearest epoch, at least 1; 0 stays
    0. The clustering period M does not move.

    Args:
        table: of a pretraining config; ``schedule.milestones_of`` says for how many epochs its
            milestones are written (800, the paper's, where it is missing).
    """
    table = {
        k: dict(v) if k in ("method", "schedule") and isinstance(v, dict) else v
        for k, v in table.items()
    }
    schedule = table.get("schedule", {})
    written_for = schedule.pop("milestones_of", PAPER_EPOCHS)
    if not _is_true(schedule.pop("rescale", False)):
        return table
    epochs = schedule.get("epochs", PAPER_EPOCHS)
    if not all(type(n) is int and n > 0 for n in (epochs, written_for)):
        raise ValueError(
            f"schedule.rescale needs whole numbers of epochs above 0, got epochs={epochs!r} and "
            f"milestones_of={written_for!r}"
        )
    for (part, key), default in PAPER_MILESTONES.items():
        section = table.setdefault(part, {})
        value = section.get(key, default)
        if isinstance(value, list | tuple):
            section[key] = sorted({_moved(v, epochs, written_for) for v in value})
        else:
            section[key] = _moved(value, epochs, written_for)
    return table


def _is_true(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"schedule.rescale must be true or false, got {value!r}")
    return value


def _moved(epoch: float, epochs: int, written_for: int) -> int:
    return max(1, math.floor(epoch * epochs / written_for + 0.5)) if epoch > 0 else 0
