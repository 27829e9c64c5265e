"""The same course in fewer or more epochs: milestones move in proportion to the run's length."""

import math
from collections.abc import Mapping
from typing import Any

PAPER_EPOCHS = 800
# Milestones and what they are where a config does not say: the paper's, for 800 epochs.
SCHEDULE_MILESTONES: dict[tuple[str, str], Any] = {
    ("schedule", "lr_warmup_epochs"): 10,
    ("schedule", "lr_drops"): (768, 784),
    ("schedule", "keep_epochs"): (5, 25, 50, 100, 200, 500, 800),
}
METHOD_MILESTONES: dict[str, dict[tuple[str, str], Any]] = {
    "cyborgs": {("method", "warmup_epochs"): 5, ("method", "refresh_masks_every"): 100}
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
    table = {k: dict(v) if isinstance(v, Mapping) else v for k, v in table.items()}
    schedule = table.get("schedule", {})
    if not isinstance(schedule, dict):
        return table  # refused by validation
    written_for = schedule.pop("milestones_of", PAPER_EPOCHS)
    wanted = schedule.pop("rescale", False)
    epochs = schedule.get("epochs", PAPER_EPOCHS)
    if type(wanted) is not bool:
        raise ValueError(f"schedule.rescale must be true or false, got {wanted!r}")
    if type(written_for) is not int or written_for < 1:
        raise ValueError(f"schedule.milestones_of must be epochs above 0, got {written_for!r}")
    if wanted and type(epochs) is int and epochs > 0:
        for (part, key), default in _milestones(table).items():
            section = table.setdefault(part, {})
            if isinstance(section, dict):
                section[key] = _moved(section.get(key, default), epochs / written_for)
        _keep_inside(table["schedule"], epochs)
    return table


def _milestones(table: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    method = table.get("method", {})
    name = method.get("name", "cyborgs") if isinstance(method, dict) else ""
    return SCHEDULE_MILESTONES | METHOD_MILESTONES.get(name, {})


def _moved(value: Any, factor: float) -> Any:
    """Move an epoch, or each of a list; what is no number is left to validation."""
    if isinstance(value, list | tuple):
        return [_moved(item, factor) for item in value]
    if type(value) not in (int, float) or value <= 0:
        return value
    return max(1, math.floor(value * factor + 0.5))


def _keep_inside(schedule: dict[str, Any], epochs: int) -> None:
    """Rounding may not push the last drop to the end, nor keep an epoch twice."""
    drops, kept = schedule["lr_drops"], schedule["keep_epochs"]
    if isinstance(drops, list) and all(type(drop) is int for drop in drops):
        schedule["lr_drops"] = [min(drop, epochs - 1) for drop in drops]
    if isinstance(kept, list) and all(type(epoch) is int for epoch in kept):
        schedule["keep_epochs"] = sorted(set(kept))
