"""Stages: images -> checkpoint; nothing -> random weights; masks -> how good they are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pretrain.config import MaskQualityConfig, PretrainConfig, RandomInitConfig
from pretrain.departures import departures_from_paper
from sslbench.datasets import only
from sslbench.stage import StageContext

if TYPE_CHECKING:
    from pretrain.masks.store import MaskStore
    from sslbench.datasets import ImageList


@dataclass(frozen=True)
class Pretrain:
    """images -> checkpoint (``last.pt``), kept epochs, all masks and the newest as ``masks``."""

    kind: ClassVar[str] = "pretrain"
    # 2: bfloat16 on a GPU; 3: masks from a folded trunk; 4: by any number of threads
    version: ClassVar[int] = 4
    parallel: ClassVar[bool] = True  # runs in as many processes as torchrun or srun starts
    config_type: ClassVar[type] = PretrainConfig
    config: PretrainConfig

    @property
    def label(self) -> str:
        """The method's name."""
        return self.config.method.name

    def needs(self) -> tuple[str, ...]:
        """The images; their annotations only where these are the masks.

        A probe's data cannot change the numbers.
        """
        part = "all" if self.config.method.reads_annotations else "images"
        return (only(part, self.config.images),)

    def footnotes(self) -> tuple[str, ...]:
        """What stands beside every number that comes from this pretraining."""
        departures = departures_from_paper(self.config)
        return tuple(f"pretraining departs from the paper: {item}" for item in departures)

    def run(self, ctx: StageContext) -> dict[str, str]:
        """Train to the last epoch, from wherever the folder stands."""
        import torch

        from pretrain.probe import load_probe
        from pretrain.schedule import mask_epoch
        from pretrain.train import Place, Run, kept_path
        from sslbench.datasets import images
        from sslbench.log import RunLog

        cfg = self.config
        place = Place(ctx.dir, torch.device(ctx.device), ctx.num_workers, ctx.data)
        pictures, probe = images(cfg.images, ctx.data), load_probe(cfg, ctx.data)
        with RunLog(ctx.dir) as log:
            given = {"init": ctx.inputs.get("init"), "stored": ctx.inputs.get("store")}
            Run(cfg, pictures, place, log, probe=probe, **given).train()
        made = {"checkpoint": "checkpoints/last.pt"}
        for epoch in cfg.schedule.keep_epochs:
            path = kept_path(ctx.dir, epoch)
            made[path.stem] = str(path.relative_to(ctx.dir))
        used = {mask_epoch(cfg.method, epoch) for epoch in range(1, cfg.schedule.epochs + 1)}
        for epoch in sorted(used - {None}):
            made[f"masks_epoch_{epoch:04d}"] = made["masks"] = f"masks/epoch_{epoch:04d}"
        return made


@dataclass(frozen=True)
class RandomInit:
    """nothing -> an untrained trunk in the pretraining format: the control row "Random init."."""

    kind: ClassVar[str] = "pretrain"
    version: ClassVar[int] = 1
    config_type: ClassVar[type] = RandomInitConfig
    config: RandomInitConfig

    @property
    def label(self) -> str:
        """What the folder is called."""
        return "random"

    def needs(self) -> tuple[str, ...]:
        """No data."""
        return ()

    def run(self, ctx: StageContext) -> dict[str, str]:
        """Write the initial weights that a pretraining with this seed starts from."""
        from pretrain.checkpoint import save_untrained
        from pretrain.config import ArchConfig
        from pretrain.methods.cyborgs import build

        arch = ArchConfig(depth=self.config.depth, width=self.config.width)
        cfg = PretrainConfig(arch=arch, seed=self.config.seed)
        save_untrained(ctx.dir / "checkpoint.pt", build(cfg).online_backbone, cfg)
        return {"checkpoint": "checkpoint.pt"}


@dataclass(frozen=True)
class MaskQuality:
    """masks (any generation of a run; its neighbours count too) -> measures, curve, gallery."""

    kind: ClassVar[str] = "mask_quality"
    # 2: more measures than the adjusted Rand index, no boxes as truth; 3: grid by centres of cells
    version: ClassVar[int] = 3
    config_type: ClassVar[type] = MaskQualityConfig
    captions: ClassVar[dict[str, str]] = {
        "curve": "how well each generation of masks agrees with the annotations; crosses: grids of "
        "as many segments, gray: what does not change with the epochs",
        "gallery": "masks of a few images beside what is annotated in them",
    }
    config: MaskQualityConfig

    @property
    def label(self) -> str:
        """The data that the masks are measured on."""
        return self.config.data.replace("/", "_").replace(":", "_")

    def needs(self) -> tuple[str, ...]:
        """The annotated images, and those of the masks where they are others."""
        from pretrain.masks.truth import annotation_spec

        made_of = self.config.images
        return (annotation_spec(self.config.data), *([only("images", made_of)] if made_of else []))

    def run(self, ctx: StageContext) -> dict[str, str]:
        """Measure every mask generation beside the 5x5 grid, and draw a few images."""
        from pretrain.masks.gallery import draw_gallery
        from pretrain.masks.quality import measure, named
        from pretrain.masks.quality_files import write_quality
        from pretrain.masks.store import generations
        from pretrain.masks.truth import AnnotatedImages
        from sslbench.results import write_results

        annotated = AnnotatedImages.load(self.config.data, ctx.data, self.config.images)
        stores = named(generations(ctx.inputs["masks"].parent, annotated.images_id).values())
        if self.config.random_network:
            stores["random_network"] = self._untrained_masks(ctx, annotated.images)
        quality = measure(stores, annotated, ctx.data, ctx.num_workers)
        made = write_quality(ctx.dir, quality)
        if self.config.gallery_images:
            draw_gallery(ctx.dir / "gallery.png", stores, annotated, self.config.gallery_images)
            made["gallery"] = "gallery.png"
        write_results(ctx.dir / "results.json", quality.results())
        return {"results": "results.json", **made}

    def _untrained_masks(self, ctx: StageContext, images: "ImageList") -> "MaskStore":
        from pretrain.control import untrained_masks
        from sslbench.log import RunLog

        folder = ctx.dir / "random_network"
        checkpoint = ctx.inputs["checkpoint"]
        with RunLog(ctx.dir) as log:
            return untrained_masks(checkpoint, images, folder, log, ctx.device, ctx.num_workers)
