"""What a pretraining is: the numbers that decide its result. Defaults are the paper's protocol.

Epochs count from 1. ``method`` is a union told apart by its ``name``; so far it has one member.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pretrain.plan import EVERY_EPOCH_ALIKE, EpochPlan
from pretrain.rescale import rescaled
from sslbench.config import FrozenConfig, NotHashed
from sslbench.datasets import is_data_spec

Precision = Literal["auto", "fp32", "bf16"]  # of the networks' forward and backward passes
Layer = Annotated[str, Field(pattern=r"^layer[1-4](\.\d+)?$")]
Layers = Annotated[tuple[Layer, ...], Field(min_length=1)]
FUSED = "fused"  # the map that masks are pooled from, in the place of a layer's name

MAX_IDS = 256  # a stored label is one byte
# Masks that need no network, or none of this run's: made once, never refreshed.
STORED = "stored"  # the source that reads masks made before
FIXED_SOURCES = ("crop", "grid", "felzenszwalb", "boxes", "ground_truth", STORED)


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


class KMeansConfig(FrozenConfig):
    """k-means with a K drawn uniformly from a range, both ends included."""

    metric: Literal["cosine", "euclidean"] = "cosine"  # cosine: spherical k-means
    min_clusters: int = Field(default=2, ge=2, le=MAX_IDS)
    max_clusters: int = Field(default=256, ge=2, le=MAX_IDS)
    iterations: int = Field(default=20, gt=0)
    fit_every: int = Field(default=1, ge=1)  # centres are fitted on every n-th point
    start: Literal["random", "kmeans++"] = "random"  # points drawn alike, or far from each other
    backend: Literal["torch", "faiss"] = "torch"

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if self.min_clusters > self.max_clusters:
            raise ValueError(
                f"min_clusters {self.min_clusters} exceeds max_clusters {self.max_clusters}"
            )
        return self


class MaskConfig(KMeansConfig):
    """Where masks come from (paper Sec. 3.3, Algorithm 1)."""

    source: Literal["kmeans", "crop", "grid", "felzenszwalb", "boxes", "ground_truth", "stored"] = (
        "kmeans"
    )
    # The folder of the masks where source = "stored"; counts by its bytes.
    store: Annotated[str, NotHashed] = ""
    layers: Layers = ("layer2.2",)  # clustered features; the paper's "res2.b2"
    images_per_clustering: int = Field(default=16, ge=1)
    refine: Literal["none", "crf"] = "none"  # of clustered labels (paper Table 2b)

    @model_validator(mode="after")
    def _a_store_has_its_source(self) -> Self:
        if self.source == STORED and not self.store:
            raise ValueError(
                f"source={STORED!r} needs the folder of the masks: add store, as store='masks/fh'"
            )
        if self.store and self.source != STORED:
            raise ValueError(
                f"store={self.store!r} is read by source={STORED!r}, not by {self.source!r}: "
                f"leave it out, or set source={STORED!r}"
            )
        return self

    @model_validator(mode="after")
    def _only_clusters_are_refined(self) -> Self:
        if self.refine != "none" and self.source != "kmeans":
            raise ValueError(
                f"refine={self.refine!r} refines clusters by their prototypes, which "
                f"source={self.source!r} has not: set refine='none'"
            )
        if self.refine != "none" and self.metric != "cosine":
            raise ValueError(
                f"refine={self.refine!r} weighs labels by cosine, but metric is "
                f"{self.metric!r}: set one of them to its default"
            )
        return self


class ClusteringConfig(KMeansConfig):
    """The clustering-consistency loss (paper Sec. 3.4, Eq. 3 and 4)."""

    distance: Literal["vmf", "euclidean"] = "vmf"
    weight: float = Field(default=0.1, ge=0)  # lambda after the warm-up; within it 1
    kappa: float = Field(default=10.0, gt=0)
    layer: Layer | Literal["fused"] = "layer2.2"  # the bootstrapping layer, or the fused map
    # Both views' prototypes from the target and the loss symmetric; or to the letter of Algorithm
    # 2: the online network sees view 1 alone, the target view 2, each with prototypes of its own.
    prototypes: Literal["target", "literal"] = "target"
    correspondence: Literal["aligned", "nearest"] = "aligned"
    warmup_clusters: int = Field(default=8, ge=2, le=MAX_IDS)
    images_per_group: int = Field(default=8, gt=0)
    # After the warm-up: an update of its own, with fresh views of the same images (Algorithm 3).
    separate_step: bool = False


class ViewsConfig(FrozenConfig):
    """Appearance of the views; everything else is BYOL's."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # antialiased; bilinear: not
    # The factor multiplies the saturation; or it is added to it, as in the released code.
    saturation: Literal["multiplied", "added"] = "multiplied"


class MethodConfig(FrozenConfig):
    """The keys of a method. A method without masks answers as it stands here."""

    @property
    def mask_config(self) -> MaskConfig | None:
        """Where its masks come from, if it has any."""
        return None

    def plan(self, epoch: int) -> EpochPlan:
        """Say what ``epoch`` (from 1) does."""
        return EVERY_EPOCH_ALIKE

    @property
    def reads_annotations(self) -> bool:
        """Whether the images' annotations are trained on."""
        return self.mask_config is not None and self.mask_config.source == "ground_truth"

    @property
    def clusters_by_faiss(self) -> bool:
        """Whether FAISS has to be there."""
        return False

    def require_fit(self, crop_size: int, epochs: int) -> None:
        """Raise ``ValueError`` where the keys do not fit the run."""


class CyborgsConfig(MethodConfig):
    """CYBORGS: contrast over bootstrapped masks, plus clustering consistency."""

    name: Literal["cyborgs"] = "cyborgs"
    warmup_epochs: int = Field(default=5, ge=0)  # W: clustering loss alone
    refresh_masks_every: int = Field(default=100, ge=0)  # N; 0 = only once, after the warm-up
    refresh_masks_at: Literal["start", "end"] = "start"  # of the epochs N, 2N, ...
    clustering_every: int = Field(default=5, ge=0)  # M; 0 = never after the warm-up
    contrast_layers: Layers = ("layer2", "layer3", "layer4")
    contrast_grid: int = Field(default=7, gt=0)  # cells along a side of the fused map
    fusion: Literal["average", "bilinear"] = "average"
    normalise_layers: bool = False  # each layer's cells to unit length before they are joined
    mask_ids: int = Field(default=MAX_IDS, ge=2, le=MAX_IDS)  # higher ids become 0
    masks_per_view: int = Field(default=16, gt=0)  # R
    # With replacement from the masks that are present, the same for online and target; or without,
    # absent masks filling up, and drawn for each network by itself, as the released code does.
    sampling: Literal["present", "released"] = "present"
    hidden: int = Field(default=4096, gt=0)  # width of projector and predictor
    embedding: int = Field(default=256, gt=0)  # size of the vectors that are contrasted
    mlp_norm: Literal["rows", "slots"] = "rows"  # BatchNorm over all rows, or per sampled mask
    last_bias: bool = False  # of projector and predictor
    temperature: float = Field(default=0.1, gt=0)
    target_rate: float = Field(default=0.996, ge=0, le=1)  # tau at the start
    target_schedule: Literal["cosine", "constant"] = "cosine"  # cosine ends at 1
    views: ViewsConfig = ViewsConfig()
    masks: MaskConfig = MaskConfig()
    clustering: ClusteringConfig = ClusteringConfig()

    @property
    def mask_config(self) -> MaskConfig:
        """Always there."""
        return self.masks

    @property
    def clusters_by_faiss(self) -> bool:
        """Asked for by the masks or by the loss."""
        return "faiss" in (self.masks.backend, self.clustering.backend)

    def plan(self, epoch: int) -> EpochPlan:
        """Algorithm 3: warm-up, mask refresh, contrast, periodic clustering."""
        clustering = self.clustering
        if epoch <= self.warmup_epochs:
            warmup = (clustering.warmup_clusters, clustering.warmup_clusters)
            return EpochPlan(
                refresh_masks=False, contrast=False, clustering_weight=1.0, clusters=warmup
            )
        finished = epoch - (self.refresh_masks_at == "end")
        refresh = epoch == self.warmup_epochs + 1 or _due(finished, self.refresh_masks_every)
        return EpochPlan(
            refresh_masks=refresh,
            contrast=True,
            clustering_weight=clustering.weight if _due(epoch, self.clustering_every) else 0.0,
            clusters=(clustering.min_clusters, clustering.max_clusters),
            separate=clustering.separate_step,
        )

    @property
    def uniforms_per_view(self) -> int:
        """Random numbers that the draw of a view's masks takes."""
        return self.masks_per_view if self.sampling == "present" else 2 * self.mask_ids

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

    @model_validator(mode="after")
    def _ids_suffice(self) -> Self:
        if self.sampling == "released" and self.mask_ids < self.masks_per_view:
            raise ValueError(
                f"sampling='released' draws masks_per_view ({self.masks_per_view}) different ids "
                f"of mask_ids ({self.mask_ids}): raise mask_ids or lower masks_per_view"
            )
        return self

    def require_fit(self, crop_size: int, epochs: int) -> None:
        """Refuse a grid of broken cells and milestones beyond the end."""
        if crop_size % self.contrast_grid:
            raise ValueError(
                f"crop_size {crop_size} is no multiple of method.contrast_grid "
                f"{self.contrast_grid}: label cells must be whole pixels"
            )
        if self.warmup_epochs >= epochs:
            raise ValueError(
                f"method.warmup_epochs {self.warmup_epochs} leaves no contrastive epoch of {epochs}"
            )
        plans = {epoch: self.plan(epoch) for epoch in range(self.warmup_epochs + 1, epochs + 1)}
        later = [e for e, plan in plans.items() if plan.refresh_masks][1:]
        first = self.warmup_epochs + 1
        if self.refresh_masks_every and not later and not _due(first, self.refresh_masks_every):
            raise ValueError(
                f"method.refresh_masks_every {self.refresh_masks_every} lies beyond the last "
                f"epoch {epochs}; 0 means: only once, after the warm-up"
            )
        if self.clustering_every and not any(_due(e, self.clustering_every) for e in plans):
            raise ValueError(
                f"method.clustering_every {self.clustering_every} lies beyond the last "
                f"epoch {epochs}; 0 means: never after the warm-up"
            )


def _due(epoch: int, every: int) -> bool:
    return every > 0 and epoch > 0 and epoch % every == 0


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
            raise ValueError(
                f"keep_epochs {beyond} lie outside 1..{self.epochs}; change or drop, "
                "or let schedule.rescale=true move every milestone"
            )
        late = [drop for drop in self.lr_drops if not 0 < drop < self.epochs]
        if self.lr_shape == "step" and late:
            raise ValueError(
                f"lr_drops {late} lie outside the {self.epochs} epochs; move them, "
                "or set lr_drops=[] or lr_shape='cosine', or let schedule.rescale=true move them"
            )
        if self.lr_warmup_epochs >= self.epochs:
            raise ValueError(
                f"lr_warmup_epochs {self.lr_warmup_epochs} leaves nothing of {self.epochs} epochs"
            )
        return self


class ProbeConfig(FrozenConfig):
    """A k-NN probe of the trunk on labelled images while it trains; it cannot change the run."""

    every_epochs: int = Field(default=0, ge=0)  # and after the last epoch; 0 = never
    train: str = "voc2007/train"  # data-set specs with image-level labels; these vote
    test: str = "voc2007/val"  # on these
    neighbours: int = Field(default=20, gt=0)
    temperature: float = Field(default=0.07, gt=0)


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
    compile: bool = False  # the trunks' passes by torch.compile; it moves the last bits
    crop_size: int = Field(default=224, ge=32)
    arch: ArchConfig = ArchConfig()
    method: CyborgsConfig = CyborgsConfig()
    optimizer: OptimizerConfig = Field(default=LARSConfig(), discriminator="name")
    schedule: ScheduleConfig = ScheduleConfig()
    probe: Annotated[ProbeConfig, NotHashed] = ProbeConfig()

    @classmethod
    def expanded(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Move the milestones where ``schedule.rescale`` asks for it."""
        return rescaled(table)

    @property
    def inputs(self) -> dict[str, Path]:
        """What the user brings beside the images, by the stage's names; it counts by its bytes."""
        masks = self.method.mask_config
        brought = {"init": self.init, "store": masks.store if masks is not None else ""}
        return {name: Path(path).expanduser() for name, path in brought.items() if path}

    @model_validator(mode="after")
    def _annotations_can_be_found(self) -> Self:
        if self.method.reads_annotations and not is_data_spec(self.images):
            raise ValueError(
                f"method.masks.source='ground_truth' needs annotations, and images={self.images!r} "
                "has none: give a data set with masks, as images='coco2017/train'"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        self.method.require_fit(self.crop_size, self.schedule.epochs)
        return self


class RandomInitConfig(ArchConfig):
    """The control row: a network as it is before any training."""

    seed: int = Field(default=0, ge=0)


class MaskQualityConfig(FrozenConfig):
    """What the masks of a run are measured against."""

    # Data-set spec with outlines of objects: COCO's instances, coco2017/train:segments (panoptic)
    # or VOC with SegmentationObject.
    data: str = "coco2017/train"
    # What the masks were made of, where these are not the images of ``data``; counts by content.
    images: Annotated[str, NotHashed] = ""
    random_network: bool = False  # also those of the run's untrained network, BatchNorm calibrated
    gallery_images: Annotated[int, NotHashed, Field(ge=0)] = 6  # drawn, not measured
