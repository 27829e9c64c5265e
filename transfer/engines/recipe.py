"""Detectron2's YAML recipes, read without Detectron2: merging, defaults, what is honoured.

One file per recipe serves both engines. The ``detectron2`` engine hands the merged values to
Detectron2's own config; the ``torchvision`` engine reads them here and refuses every key or
value that it would otherwise ignore.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sslbench.config import CONFIGS_DIR, ConfigError, overlay

RECIPES_DIR = CONFIGS_DIR / "d2"

# Keys that are read here, by either engine, with Detectron2's own defaults (a test compares them
# with its get_cfg()).
DEFAULTS: dict[str, Any] = {
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.0,
    "DATALOADER.REPEAT_SQRT": True,
    "MODEL.MASK_ON": False,
    "MODEL.PIXEL_MEAN": (103.530, 116.280, 123.675),
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "",
    "MODEL.ANCHOR_GENERATOR.SIZES": ((32, 64, 128, 256, 512),),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ((0.5, 1.0, 2.0),),
    "MODEL.RPN.IOU_THRESHOLDS": (0.3, 0.7),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": (0.5,),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": (30000,),
    "SOLVER.WARMUP_FACTOR": 1.0 / 1000,
    "SOLVER.WARMUP_ITERS": 1000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.PRECISE_BN.ENABLED": False,
    "TEST.PRECISE_BN.NUM_ITER": 200,
}

# Levels of a pyramid, by where they come from and who reads them.
STAGES = ("res2", "res3", "res4", "res5")
LEVELS = ("p2", "p3", "p4", "p5", "p6")

# Keys of which one value is built here, of some one a layout: (Detectron2's default, the accepted).
FIXED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", ("GeneralizedRCNN",)),
    "MODEL.BACKBONE.FREEZE_AT": (2, (0,)),
    "MODEL.RESNETS.STRIDE_IN_1X1": (True, (False,)),
    "MODEL.RESNETS.NUM_GROUPS": (1, (1,)),
    "MODEL.RESNETS.OUT_FEATURES": (("res4",), (("res4",), STAGES)),
    "MODEL.FPN.IN_FEATURES": ((), ((), STAGES)),
    "MODEL.RPN.IN_FEATURES": (("res4",), (("res4",), LEVELS)),
    "MODEL.ROI_HEADS.IN_FEATURES": (("res4",), (("res4",), LEVELS[:4])),
    "MODEL.ROI_BOX_HEAD.NAME": ("", ("", "FastRCNNConvFCHead")),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead", ("MaskRCNNConvUpsampleHead",)),
    "MODEL.FPN.FUSE_TYPE": ("sum", ("sum",)),
    "MODEL.RPN.BBOX_REG_WEIGHTS": ((1.0, 1.0, 1.0, 1.0), ((1.0, 1.0, 1.0, 1.0),)),
    "MODEL.RPN.SMOOTH_L1_BETA": (0.0, (0.0,)),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": (0.0, (0.0,)),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": (0, (0,)),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": (0, (0,)),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False, (False,)),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": (False, (False,)),
    "INPUT.FORMAT": ("BGR", ("RGB",)),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", ("choice",)),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", ("WarmupMultiStepLR",)),
    "SOLVER.WARMUP_METHOD": ("linear", ("linear",)),
    "SOLVER.BIAS_LR_FACTOR": (1.0, (1.0,)),
    "SOLVER.WEIGHT_DECAY_BIAS": (None, (None,)),
    "SOLVER.CLIP_GRADIENTS.ENABLED": (False, (False,)),
    "SOLVER.AMP.ENABLED": (False, (False,)),
    "TEST.AUG.ENABLED": (False, (False,)),
    "INPUT.CROP.ENABLED": (False, (False,)),
    "INPUT.MASK_FORMAT": ("polygon", ("polygon",)),
    "MODEL.KEYPOINT_ON": (False, (False,)),
    "MODEL.LOAD_PROPOSALS": (False, (False,)),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": (True, (True,)),
}

# Keys that our own loop and loader read for both engines, so that Detectron2 itself never does.
OF_THE_LOOP = ("SOLVER.", "DATALOADER.", "TEST.AUG.", "TEST.EVAL_PERIOD")
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")

# Keys that the task or the trainer decides for both engines, so that a recipe's value is never
# consulted.
ELSEWHERE = {
    "VERSION": "Detectron2's schema version",
    "OUTPUT_DIR": "the run folder",
    "SEED": "the task's seed",
    "MODEL.WEIGHTS": "the converted weights",
    "MODEL.DEVICE": "the site's device",
    "DATASETS.TRAIN": "the task's train",
    "DATASETS.TEST": "the task's test",
    "DATALOADER.NUM_WORKERS": "the site's workers",
    "SOLVER.CHECKPOINT_PERIOD": "the task's checkpoint_every",
}


def recipe_path(name: str) -> Path:
    """Path of a recipe: a name in ``configs/d2`` without suffix, or a path to a YAML file."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES_DIR / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES_DIR.glob("*.yaml")))
        raise ConfigError(f"recipe {name!r}: {path} does not exist; known: {known}")
    return path


def read_recipe(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read one YAML file over the files its ``_BASE_`` names, decoding as Detectron2 does."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: _BASE_ goes round in a circle")
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe (named as _BASE_ by {seen[-1]})")
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path} must be a table of Detectron2 keys, got {type(table).__name__}")
    bases = table.pop("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:  # the later of two wins
        merged = overlay(merged, read_recipe(path.parent / base, (*seen, path)))
    return overlay(merged, decoded(table))


def decoded(value: Any) -> Any:
    """Turn ``"(480, 512)"`` and ``"1e-3"`` into what they say, as yacs does."""
    if isinstance(value, Mapping):
        return {key: decoded(inner) for key, inner in value.items()}
    if isinstance(value, str):
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
        return value if isinstance(literal, str) else decoded(literal)
    return [decoded(inner) for inner in value] if isinstance(value, list | tuple) else value


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("MODEL.RPN.NMS_THRESH", 0.7)`` for every leaf; sequences as tuples."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list | tuple) else value


def trunk_values(depth: int, width: float) -> dict[str, int]:
    """Values of ``MODEL.RESNETS`` that build a ResNet of this depth, ``width`` times as wide."""
    expansion = 4 if depth >= 50 else 1
    channels = round(64 * width)
    return {
        "DEPTH": depth,
        "STEM_OUT_CHANNELS": channels,
        "WIDTH_PER_GROUP": channels,
        "RES2_OUT_CHANNELS": channels * expansion,
    }


class Recipe:
    """A merged recipe's values over Detectron2's defaults: ``recipe["SOLVER.BASE_LR"]``.

    Args:
        table: nested values as ``read_recipe`` returns them.
        name: for messages.
    """

    def __init__(self, table: Mapping[str, Any], name: str = "recipe") -> None:
        self.given = dict(flatten(table))
        self.name = name

    def __getitem__(self, key: str) -> Any:
        return self.given[key] if key in self.given else DEFAULTS[key]

    @property
    def width(self) -> float:
        """Factor on a standard ResNet's channels, from the three keys that must agree on it."""
        factors = {
            key: self[key] / DEFAULTS[key]
            for key in (
                "MODEL.RESNETS.STEM_OUT_CHANNELS",
                "MODEL.RESNETS.WIDTH_PER_GROUP",
                "MODEL.RESNETS.RES2_OUT_CHANNELS",
            )
        }
        if self["MODEL.RESNETS.DEPTH"] < 50:  # basic blocks: no expansion by 4
            factors["MODEL.RESNETS.RES2_OUT_CHANNELS"] *= 4
        if len(set(factors.values())) > 1:
            raise ConfigError(f"{self.name}: these keys imply different widths: {factors}")
        return float(factors["MODEL.RESNETS.STEM_OUT_CHANNELS"])

    def require_portable(self) -> None:
        """Refuse every key and value that the torchvision engine would silently ignore."""
        unread, unfit = self._unread(), self._unfit()
        problems = [
            f"{key} = {value!r} is not built by the torchvision engine"
            for key, value in unread.items()
        ]
        problems += [
            f"{key} is {value!r}; the torchvision engine builds "
            + " or ".join(map(repr, FIXED[key][1]))
            for key, value in unfit.items()
        ]
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise ConfigError(
                f"{self.name} needs the detectron2 engine (install Detectron2) or other values:\n"
                + listed
            )

    def require_known_loop(self) -> None:
        """Refuse what our loop and loader, which serve both engines, would silently ignore."""
        problems = self._unread() | self._unfit()
        for key, value in problems.items():
            if key.startswith(OF_THE_LOOP):
                remedy = f"set {FIXED[key][1][0]!r}" if key in FIXED else "take it out"
                raise ConfigError(
                    f"{self.name}: {key} is {value!r}, which training here does not do: {remedy}"
                )
        sampler = self["DATALOADER.SAMPLER_TRAIN"]
        if sampler not in SAMPLERS:
            raise ConfigError(
                f"{self.name}: DATALOADER.SAMPLER_TRAIN is {sampler!r}; known: {SAMPLERS}"
            )
        threshold = self["DATALOADER.REPEAT_THRESHOLD"]
        if sampler == "RepeatFactorTrainingSampler" and not threshold > 0:
            raise ConfigError(
                f"{self.name}: DATALOADER.REPEAT_THRESHOLD must be above 0 for {sampler}, "
                f"got {threshold}; LVIS takes 0.001"
            )

    def _unread(self) -> dict[str, Any]:
        known = {*DEFAULTS, *FIXED, *ELSEWHERE}
        return {key: value for key, value in self.given.items() if key not in known}

    def _unfit(self) -> dict[str, Any]:
        values = {key: self.given.get(key, default) for key, (default, _) in FIXED.items()}
        return {key: value for key, value in values.items() if value not in FIXED[key][1]}
