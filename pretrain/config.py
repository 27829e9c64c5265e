"""What a pretraining is: the numbers that decide its result. Defaults are the paper's protocol.

Epochs count from 1. ``method`` is a union told apart by its ``name``; so far it has one member.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pretrain.rescale import rescaled
from sslbench.config import FrozenConfig, NotHashed
from sslbench.datasets import is_data_spec

Precision = Literal["auto", "fp32", "bf16"]  # of the networks' forward and backward passes
Layer = Annotated[str, Field(pattern=r"^layer[1-4](\.\d+)?$")]
Layers = Annotated[tuple[Layer, ...], Field(min_length=1)]

MAX_IDS = 256  # a stored label is one byte
# Masks that need no network: made once, never refreshed.
FIXED_SOURCES = ("crop", "grid", "felzenszwalb", "boxes", "ground_truth")


class ArchConfig(FrozenConfig):
    """The trunk."""

    depth: Literal[18, 34, 50, 101] = 50
    width: float = Field(default=1.0, gt=0)  # factor on every channel count

    @field_validator("width")
    @classmethod
    def _makes_whole_channels(cls, width: float) -> float:
        if (64 * width) != int(64 * width):
            raise ValueError("width must be a multiple of 1/64, so that channel counts are whole")
        return width


class _KMeansConfig(FrozenConfig):
    """Spherical k-means with a K drawn uniformly from a range, both ends included."""

    min_clusters: int = Field(default=2, ge=2, le=MAX_IDS)
    max_clusters: int = Field(default=256, ge=2, le=MAX_IDS)
    iterations: int = Field(default=20, gt=0)

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if self.min_clusters > self.max_clusters:
            raise ValueError(
                f"min_clusters {self.min_clusters} exceeds max_clusters {self.max_clusters}"
            )
        return self


class MaskConfig(_KMeansConfig):
    """Where masks come from (paper Sec. 3.3, Algorithm 1)."""

    source: Literal["kmeans", "crop", "grid", "felzenszwalb", "boxes", "ground_truth"] = "kmeans"
    layers: Layers = ("layer2.2",)  # clustered features; the paper's "res2.b2"
    images_per_clustering: int = Field(default=16, ge=1)
    refine: Literal["none", "crf"] = "none"  # of clustered labels (paper Table 2b)


class ClusteringConfig(_KMeansConfig):
    """The clustering-consistency loss (paper Sec. 3.4, Eq. 3 and 4)."""

    distance: Literal["vmf", "euclidean"] = "vmf"
    weight: float = Field(default=0.1, ge=0)  # lambda after the warm-up; within it 1
    kappa: float = Field(default=10.0, gt=0)
    layer: Layer = "layer2.2"
    correspondence: Literal["aligned", "nearest"] = "aligned"
    warmup_clusters: int = Field(default=8, ge=2, le=MAX_IDS)
    images_per_group: int = Field(default=8, gt=0)


class CyborgsConfig(FrozenConfig):
    """CYBORGS: contrast over bootstrapped masks, plus clustering consistency."""

    name: Literal["cyborgs"] = "cyborgs"
    warmup_epochs: int = Field(default=5, ge=0)  # W: clustering loss alone
    refresh_masks_every: int = Field(default=100, ge=0)  # N; 0 = only once, after the warm-up
    clustering_every: int = Field(default=5, ge=0)  # M; 0 = never after the warm-up
    contrast_layers: Layers = ("layer2", "layer3", "layer4")
    contrast_grid: int = Field(default=7, gt=0)  # cells along a side of the fused map
    fusion: Literal["average", "bilinear"] = "average"
    masks_per_view: int = Field(default=16, gt=0)  # R
    hidden: int = Field(default=4096, gt=0)  # width of projector and predictor
    embedding: int = Field(default=256, gt=0)  # size of the vectors that are contrasted
    temperature: float = Field(default=0.1, gt=0)
    target_rate: float = Field(default=0.996, ge=0, le=1)  # tau at the start
    target_schedule: Literal["cosine", "constant"] = "cosine"  # cosine ends at 1
    masks: MaskConfig = MaskConfig()
    clustering: ClusteringConfig = ClusteringConfig()

    @model_validator(mode="after")
    def _only_clusters_are_refined(self) -> Self:
        if self.masks.refine != "none" and self.masks.source != "kmeans":
            raise ValueError(
                f"masks.refine={self.masks.refine!r} refines clusters by their prototypes, which "
                f"masks.source={self.masks.source!r} has not: set masks.refine='none'"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits_the_masks(self) -> Self:
        fixed = self.masks.source in FIXED_SOURCES
        if fixed and (self.warmup_epochs or self.refresh_masks_every):
            raise ValueError(
                f"masks.source={self.masks.source!r} is there from the start and never changes: "
                f"set warmup_epochs (now {self.warmup_epochs}) and refresh_masks_every "
                f"(now {self.refresh_masks_every}) to 0"
            )
        return self


class _StepConfig(FrozenConfig):
    """What every optimizer has."""

    lr: float = Field(default=0.1, gt=0)  # at a total batch of 64; proportional to the batch
    weight_decay: float = Field(default=1.5e-6, ge=0)


class LARSConfig(_StepConfig):
    """The paper's optimizer."""

    name: Literal["lars"] = "lars"
    momentum: float = Field(default=0.9, ge=0, lt=1)


class AdamWConfig(_StepConfig):
    """AdamW, for short runs. Weight decay stays the 1.5e-6 of LARS: as good as none."""

    name: Literal["adamw"] = "adamw"


class SGDConfig(_StepConfig):
    """SGD with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)


OptimizerConfig = LARSConfig | AdamWConfig | SGDConfig


class ScheduleConfig(FrozenConfig):
    """Length of the run and course of the learning rate."""

    epochs: int = Field(default=800, gt=0)
    lr_shape: Literal["step", "cosine"] = "step"
    lr_warmup_epochs: float = Field(default=10, ge=0)  # linear, from a hundredth
    lr_drops: tuple[float, ...] = (768, 784)  # each divides by ten ("step" only)
    keep_epochs: tuple[int, ...] = (5, 25, 50, 100, 200, 500, 800)  # checkpoints that stay
    # Also save within an epoch; 0 = at epoch ends only. Cannot change a number.
    save_every_steps: Annotated[int, NotHashed, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _milestones_lie_inside(self) -> Self:
        beyond = [epoch for epoch in self.keep_epochs if not 1 <= epoch <= self.epochs]
        if beyond:
            raise ValueError(f"keep_epochs {beyond} lie outside 1..{self.epochs}; change or drop")
        late = [drop for drop in self.lr_drops if not 0 < drop < self.epochs]
        if self.lr_shape == "step" and late:
            raise ValueError(
                f"lr_drops {late} lie outside the {self.epochs} epochs; move them, "
                "or set lr_drops=[] or lr_shape='cosine'"
            )
        if self.lr_warmup_epochs >= self.epochs:
            raise ValueError(
                f"lr_warmup_epochs {self.lr_warmup_epochs} leaves nothing of {self.epochs} epochs"
            )
        return self


class PretrainConfig(FrozenConfig):
    """One pretraining run.

    ``schedule.rescale=true`` beside another ``schedule.epochs`` moves every milestone in proportion
    (see ``pretrain.rescale``); the config then holds the moved ones.
    """

    # Folder, list file or tar, or a data-set spec; the content is fingerprinted, not the path.
    images: Annotated[str, NotHashed] = "coco2017/train"
    # Checkpoint of any known format whose trunk the run starts from; counts by its bytes.
    init: Annotated[str, NotHashed] = ""
    init_branch: str = Field(default="online", min_length=1)  # online, target or a prefix
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=2)  # over all processes
    accumulate: int = Field(default=1, gt=0)  # parts that a process makes of its images of a step
    precision: Precision = "auto"  # bf16 on a GPU, fp32 on the CPU
    crop_size: int = Field(default=224, ge=32)
    arch: ArchConfig = ArchConfig()
    method: CyborgsConfig = CyborgsConfig()
    optimizer: OptimizerConfig = Field(default=LARSConfig(), discriminator="name")
    schedule: ScheduleConfig = ScheduleConfig()

    @classmethod
    def expanded(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Move the milestones where ``schedule.rescale`` asks for it."""
        return rescaled(table)

    @model_validator(mode="after")
    def _annotations_can_be_found(self) -> Self:
        if self.method.masks.source == "ground_truth" and not is_data_spec(self.images):
            raise ValueError(
                f"method.masks.source='ground_truth' needs annotations, and images={self.images!r} "
                "has none: give a data set with masks, as images='coco2017/train'"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        method, epochs = self.method, self.schedule.epochs
        if self.crop_size % method.contrast_grid:
            raise ValueError(
                f"crop_size {self.crop_size} is no multiple of method.contrast_grid "
                f"{method.contrast_grid}: label cells must be whole pixels"
            )
        if method.warmup_epochs >= epochs:
            raise ValueError(
                f"method.warmup_epochs {method.warmup_epochs} leaves no contrastive epoch "
                f"of {epochs}"
            )
        if method.refresh_masks_every > epochs:
            raise ValueError(
                f"method.refresh_masks_every {method.refresh_masks_every} lies beyond the last "
                f"epoch {epochs}; 0 means: only once, after the warm-up"
            )
        if method.clustering_every > epochs:
            raise ValueError(
                f"method.clustering_every {method.clustering_every} lies beyond the last "
                f"epoch {epochs}; 0 means: never after the warm-up"
            )
        return self


class RandomInitConfig(ArchConfig):
    """The control row: a network as it is before any training."""

    seed: int = Field(default=0, ge=0)


class MaskQualityConfig(FrozenConfig):
    """What the masks of a run are measured against."""

    data: str = "coco2017/train"  # data-set spec with instance masks; the pretraining images
    gallery_images: Annotated[int, NotHashed, Field(ge=0)] = 6  # drawn, not measured
