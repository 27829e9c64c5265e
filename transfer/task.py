"""What a detection task is: recipe, layout, data, metric, protocol. No torch: it is planned with.

``python -m transfer run voc0712_det`` loads ``configs/transfer/voc0712_det.toml``; hyper-parameters
of the model, the schedule and the resolution live in the Detectron2 recipe that it names and are
changed with ``set.SOLVER.MAX_ITER=90``.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import Field, model_validator

from sslbench.config import CONFIGS_DIR, ConfigError, FrozenConfig, NotHashed, load, overlay
from sslbench.installed import package_folder
from transfer.engines.recipe import (
    DEFAULTS,
    FIXED,
    Recipe,
    read_recipe,
    recipe_path,
    trunk_values,
)
from transfer.scaling import BATCH, scaled, settings_notes

TASKS_DIR = CONFIGS_DIR / "transfer"

Metric = Literal["voc07", "voc12", "coco", "lvis"]


class TaskConfig(FrozenConfig):
    """One detection task. After ``resolved()`` it holds every value that can change its numbers."""

    task: str = Field(min_length=1)  # id in results and tables
    kind: Literal["faster_rcnn", "mask_rcnn"]
    layout: Literal["c4", "fpn"]
    recipe: Annotated[str, NotHashed]  # name in configs/d2, or a path; hashed by recipe_values
    train: tuple[str, ...] = Field(min_length=1)  # data specs
    test: str
    metric: Metric
    protocol: str = (
        ""  # task whose published protocol this one follows or departs from; empty: itself
    )
    protocol_version: int = Field(default=1, gt=0)
    engine: Literal["auto", "detectron2", "torchvision"] = "auto"
    seed: int = Field(default=0, ge=0)
    set: Annotated[dict[str, Any], NotHashed] = Field(default_factory=dict)  # laid over the recipe
    recipe_values: dict[str, Any] = Field(default_factory=dict)  # the merged recipe, by resolved()
    # Published numbers are fp32; bf16 and fp16 hold for training alone and are noted.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(default=1, ge=1)  # equal parts of a batch, one after the other
    # Fit the recipe's rate and schedule where set.SOLVER.IMS_PER_BATCH differs from its own.
    scale_lr_with_batch: bool = False
    scaled_from: dict[str, Any] = Field(default_factory=dict)  # the recipe's own, by resolved()
    footnotes: Annotated[tuple[str, ...], NotHashed] = ()  # stand beside every number of the task
    strict: Annotated[bool, NotHashed] = False  # refuse whatever departs from the protocol
    # Runs that published numbers of the protocol are the mean of; a report notes fewer.
    published_runs: Annotated[int, NotHashed] = Field(default=1, gt=0)
    checkpoint_every: Annotated[int, NotHashed] = Field(default=500, gt=0)  # iterations
    evaluate_every: Annotated[int, NotHashed] = Field(default=0, ge=0)  # iterations; 0: at the end
    num_pictures: Annotated[int, NotHashed] = Field(default=8, ge=0)
    # not hashed: they give the same numbers, and a footnote names the one that is not the default
    evaluator: Annotated[Literal["default", "reference"], NotHashed] = "default"

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.kind == "mask_rcnn" and self.metric not in ("coco", "lvis"):
            raise ValueError(
                f"kind 'mask_rcnn' needs metric 'coco' or 'lvis' (masks), got {self.metric!r}"
            )
        return self

    def resolved(self) -> Self:
        """Pin engine and recipe contents: neither a resume nor an edited file changes them."""
        engine = pick_engine() if self.engine == "auto" else self.engine
        values, old = self._merged()
        update = {"engine": engine, "recipe_values": values, "scaled_from": old}
        resolved = self.model_copy(update=update)
        resolved.values()  # contradictions surface while planning
        return resolved

    def values(self) -> Recipe:
        """The merged recipe, checked against the task.

        Raises:
            ConfigError: recipe and task contradict each other.
        """
        recipe = Recipe(self._merged()[0], name=f"recipe {self.recipe}")
        has_fpn = recipe["MODEL.BACKBONE.NAME"] == "build_resnet_fpn_backbone"
        if has_fpn != (self.layout == "fpn"):
            backbone = recipe["MODEL.BACKBONE.NAME"]
            raise ConfigError(
                f"task {self.task}: layout {self.layout!r} contradicts MODEL.BACKBONE.NAME "
                f"{backbone!r} of {recipe.name}; use the recipe that fits, or change the layout"
            )
        if recipe["MODEL.MASK_ON"] != (self.kind == "mask_rcnn"):
            raise ConfigError(
                f"task {self.task}: kind {self.kind!r} contradicts MODEL.MASK_ON "
                f"{recipe['MODEL.MASK_ON']} of {recipe.name}"
            )
        _check_numbers(recipe)
        if recipe[BATCH] % self.accumulate:
            raise ConfigError(
                f"task {self.task}: {BATCH} {recipe[BATCH]} cannot be cut into "
                f"accumulate={self.accumulate} equal parts; take a divisor of it"
            )
        recipe.require_known_loop()
        return recipe

    def _merged(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The recipe with the task's changes, and its own values of what was scaled."""
        if self.recipe_values:
            return self.recipe_values, self.scaled_from
        written = read_recipe(recipe_path(self.recipe))
        if self.scale_lr_with_batch:
            return scaled(written, self.set, f"recipe {self.recipe}")
        return overlay(written, self.set), {}

    def notes_on_settings(self) -> tuple[str, ...]:
        """Footnotes of a result: scaling, accumulation and precision, where they were asked for."""
        return settings_notes(self.values(), self.scaled_from, self.accumulate, self.precision)

    def on_trunk(self, depth: int, width: float) -> Self:
        """The resolved task with the trunk that the weights hold: any depth and width serve.

        A trunk that the user set explicitly stays: weights of another one are refused later.
        """
        values = trunk_values(depth, width)
        if set(values) & set(self.set.get("MODEL", {}).get("RESNETS", {})):
            return self
        changed = overlay(self.recipe_values, {"MODEL": {"RESNETS": values}})
        return self.model_copy(update={"recipe_values": changed})


def _brief(value: Any) -> str:
    return json.dumps(value) if isinstance(value, tuple) else str(value)


MAY_BE_ZERO = (
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.ROI_BOX_HEAD.NUM_CONV",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",  # 0: as many samples as the region needs
    "MODEL.ROI_MASK_HEAD.NUM_CONV",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO",
    "SOLVER.WARMUP_ITERS",
)
LISTS_OF_WHOLE_NUMBERS = ("INPUT.MIN_SIZE_TRAIN", "SOLVER.STEPS")
LISTS_OF_NUMBERS = ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")


def _check_numbers(recipe: Recipe) -> None:
    """Refuse counts and sizes that would fail, or silently train nothing, hours later."""
    known = {**DEFAULTS, **{key: default for key, (default, _) in FIXED.items()}}
    for key, default in known.items():
        value = recipe.given.get(key, default)
        if type(default) is int:  # a bool is none
            least = 0 if key in MAY_BE_ZERO else 1
            if type(value) is not int or value < least:
                _refuse(recipe, key, value, f"a whole number of at least {least}")
        elif key in LISTS_OF_WHOLE_NUMBERS:
            whole = isinstance(value, tuple) and all(type(v) is int and v > 0 for v in value)
            if not whole or not (value or key == "SOLVER.STEPS"):
                _refuse(recipe, key, value, "a list of whole numbers above 0")
        elif key in LISTS_OF_NUMBERS and not _is_positive(value):
            _refuse(recipe, key, value, "lists of numbers above 0, none of them empty")
    rate = recipe["SOLVER.BASE_LR"]
    if isinstance(rate, tuple) or not _is_positive(rate):
        _refuse(recipe, "SOLVER.BASE_LR", rate, "a number above 0")


def _is_positive(value: Any) -> bool:
    """Whether a number, or every number of nested lists that are not empty, is above 0."""
    if isinstance(value, tuple):
        return bool(value) and all(_is_positive(inner) for inner in value)
    return type(value) in (int, float) and value > 0


def _refuse(recipe: Recipe, key: str, value: Any, wanted: str) -> NoReturn:
    raise ConfigError(
        f"{recipe.name}: {key} must be {wanted}, got {_brief(value)}; "
        f"change it there or with set.{key}=..."
    )


def has_detectron2() -> bool:
    """Whether Detectron2 is installed, without importing it: that would import torch."""
    return package_folder("detectron2") is not None


def pick_engine() -> Literal["detectron2", "torchvision"]:
    """The reference engine wherever it is installed, else the portable one."""
    return "detectron2" if has_detectron2() else "torchvision"


def load_task(name_or_path: str | Path, overrides: Iterable[str] = ()) -> TaskConfig:
    """Load a task by its name in ``configs/transfer`` or by the path of a TOML file."""
    text = str(name_or_path)
    path = Path(text) if text.endswith(".toml") else TASKS_DIR / f"{text}.toml"
    return load(TaskConfig, path, overrides)
