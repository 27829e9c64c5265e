"""The linear scaling rule, for who asks for it: another batch with the schedule that fits it.

As in "Accurate, Large Minibatch SGD" (Goyal et al., Sec. 2.1) and Detectron2's scaling to another
number of workers: the learning rate goes with the batch, every count of iterations against it.
"""

from collections.abc import Mapping
from typing import Any

from sslbench.config import ConfigError, overlay
from transfer.engines.recipe import Recipe, flatten

BATCH = "SOLVER.IMS_PER_BATCH"
SCALED = ("SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS")


def scaled(
    written: Mapping[str, Any], changes: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Merge a recipe with a user's changes and fit its schedule to their batch.

    Args:
        written: the recipe, whose schedule belongs to its own batch.
        changes: laid over it.
        name: of the recipe, for messages.

    Returns:
        The merged values, and the recipe's own values of what was scaled; empty if nothing was.

    Raises:
        ConfigError: the user also sets what would be scaled.
    """
    merged = overlay(written, changes)
    old, new = Recipe(written, name), Recipe(merged, name)
    if old[BATCH] == new[BATCH]:
        return merged, {}
    both = [key for key in SCALED if key in dict(flatten(changes))]
    if both:
        raise ConfigError(
            f"{name}: scale_lr_with_batch would change {', '.join(both)}, which set.{both[0]} "
            "sets: leave out one of the two"
        )
    ratio = new[BATCH] / old[BATCH]
    solver: dict[str, Any] = {"BASE_LR": old["SOLVER.BASE_LR"] * ratio}
    for key in ("MAX_ITER", "WARMUP_ITERS"):
        solver[key] = round(old[f"SOLVER.{key}"] / ratio)
    solver["STEPS"] = [round(step / ratio) for step in old["SOLVER.STEPS"]]
    return overlay(merged, {"SOLVER": solver}), {key: old[key] for key in (BATCH, *SCALED)}


def settings_notes(
    recipe: Recipe, scaled_from: Mapping[str, Any], accumulate: int, precision: str
) -> tuple[str, ...]:
    """Footnotes of a result: what a run's settings changed that its recipe does not say."""
    notes = []
    if scaled_from:
        changed = ", ".join(
            f"{key.removeprefix('SOLVER.')} {_brief(old)} -> {_brief(recipe[key])}"
            for key, old in scaled_from.items()
        )
        notes.append(f"scaled linearly with the batch: {changed}")
    if accumulate > 1:
        batch = recipe[BATCH]
        notes.append(
            f"gradients of {accumulate} parts of a batch of {batch} averaged: batch norm sees "
            f"{batch // accumulate} images at a time"
        )
    if precision != "fp32":
        notes.append(f"trained in {precision}, predicted in fp32")
    return tuple(notes)


def _brief(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(f"{inner:g}" for inner in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
