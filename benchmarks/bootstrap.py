"""A whole mask generation, and the released code's way of making one, on 640x480 photographs.

    python -m benchmarks.bootstrap --images data/coco/train2017 --repeats 5

Ours: ``pretrain.masks.refresh`` with its defaults, in float32 and in bfloat16, and in bfloat16 with
centres fitted on every 4th point (``method.masks.fit_every=4``), there also in 10 iterations
(``method.masks.iterations=10``) instead of 20. Released: the whole network one image at a time,
FAISS by Euclidean distance over the vectors scaled to unit length, labels enlarged to the image and
saved as int64 ``.npy``. All cluster groups of 16 images with K = 129, the mean of 2..256. Without
``--images``, pictures are made up.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image

from benchmarks.measure import hardware, interleaved, keep, print_table, spread
from benchmarks.stopwatch import Stopwatch
from pretrain.masks import parts, refresh
from pretrain.masks.cells import enlarge
from pretrain.masks.features import CellFeatures
from pretrain.masks.kmeans import KMeans
from pretrain.masks.kmeans_faiss import require_faiss
from pretrain.masks.store import stored_size
from pretrain.photometry import normalise
from sslbench.datasets import ImageList, decode_rgb, image_size, images_of_path
from sslbench.log import RunLog
from sslbench.resnet import ResNet
from sslbench.rng import numpy_generator, seeded

COCO_IMAGES = 118_287
CLUSTERS, GROUP, ITERATIONS = 129, 16, 20
SIZE = (480, 640)
SETTINGS = refresh.Bootstrap(("layer2.2",), CLUSTERS, CLUSTERS, GROUP, seed=0, epoch=1)
RELEASED = "released"
WAYS = {
    "fp32": SETTINGS,
    "bf16": replace(SETTINGS, precision="bf16"),
    "bf16, fit_every=4": replace(SETTINGS, precision="bf16", rule=KMeans(fit_every=4)),
    "bf16, the same, 10 iterations": replace(
        SETTINGS, precision="bf16", rule=KMeans(10, fit_every=4)
    ),
}


def make_pictures(folder: Path, count: int) -> None:
    """Write JPEGs of patches and grain, about as many bytes as COCO's."""
    folder.mkdir()
    generator = numpy_generator(0, "benchmark pictures")
    for number in range(count):
        coarse = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC))
        grain = generator.normal(0, 14, (*SIZE, 1))
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=90)


@dataclass
class Bench:
    """Images, a network whose BatchNorm has seen some of them, and where results go."""

    images: ImageList
    device: torch.device
    folder: Path

    def __post_init__(self) -> None:
        with seeded(0, "benchmark"):
            self.backbone = ResNet(50).to(self.device)
        self._calibrate()
        self.bytes: dict[str, int] = {}

    def ours(self, way: str) -> Callable[[], None]:
        """Make a generation, anew each time; no process decodes ahead, as in the released way."""

        def run() -> None:
            with tempfile.TemporaryDirectory(dir=self.folder) as fresh, RunLog(Path(fresh)) as log:
                folder = Path(fresh) / "epoch_0001"
                refresh.refresh(self.backbone, self.images, "benchmark", folder, WAYS[way], log)
                self.bytes[way] = sum(path.stat().st_size for path in folder.iterdir())

        return run

    def ours_by_part(self, way: str, watch: Stopwatch) -> Callable[[], None]:
        """The same, clocked by part."""
        run = self.ours(way)
        calls = {
            "decode": [(refresh, "decode_rgb")],
            "forward": [(CellFeatures, "__call__")],
            "k-means": [(refresh, "kmeans")],
            "write": [(parts, "_save"), (parts, "write_store")],
        }

        def clocked() -> None:
            with watch.lap(), watch.watching(calls):
                run()

        return clocked

    def released(self) -> None:
        """The released procedure, group by group."""
        with tempfile.TemporaryDirectory(dir=self.folder) as fresh:
            names = range(len(self.images))
            for start in range(0, len(self.images), GROUP):
                self._released_group(list(names[start : start + GROUP]), Path(fresh))
            self.bytes[RELEASED] = sum(path.stat().st_size for path in Path(fresh).iterdir())

    @torch.no_grad()
    def _released_group(self, members: list[int], folder: Path) -> None:
        points, sizes = [], []
        for index in members:
            pixels = decode_rgb(self.images.read(index), self.images.name(index))
            map_1Dhw = self._whole_network(pixels)
            points.append(map_1Dhw[0].flatten(1).T.cpu().numpy())
            sizes.append(pixels.shape[:2])
        rows = np.vstack(points)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
        kmeans = require_faiss().Kmeans(
            rows.shape[1], CLUSTERS, niter=ITERATIONS, max_points_per_centroid=len(rows)
        )
        kmeans.train(rows)
        labels = kmeans.index.search(rows, 1)[1][:, 0]
        for index, (height, width) in zip(members, sizes, strict=True):
            h, w = stored_size(height, width)
            own, labels = labels[: h * w].reshape(h, w), labels[h * w :]
            np.save(folder / f"{index}.npy", enlarge(own, height, width).astype(np.int64))

    def _whole_network(self, pixels: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(pixels.copy()).to(self.device).permute(2, 0, 1)[None].float()
        layers = ("layer2.2", "layer4")
        maps = self.backbone.eval().maps(normalise(images.contiguous() / 255), layers)
        return maps["layer2.2"]

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Let BatchNorm see a few images: features of an untrained network would be extreme."""
        few = [decode_rgb(self.images.read(i), "") for i in range(4)]
        batch = [torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 255 for p in few]
        squares = torch.cat([F.interpolate(x, (224, 224)) for x in batch]).to(self.device)
        for _ in range(50):
            self.backbone.train()(normalise(squares))


def require_alike(images: ImageList, count: int) -> None:
    """Refuse too few images, broken groups, and other sizes than the report speaks of."""
    if len(images) < count or count % GROUP:
        raise typer.BadParameter(f"{len(images)} images for a count of {count}; {GROUP} a group")
    for index in range(count):
        size = image_size(images.read(index), images.name(index))
        if sorted(size) != sorted(SIZE):
            raise typer.BadParameter(f"{images.name(index)} has {size} pixels, not {SIZE}")


def report(seconds: dict[str, list[float]], sizes: dict[str, int], count: int) -> list[dict]:
    """One row per way; ratios are the released way's time and bytes over its own."""
    released = statistics.median(seconds[RELEASED])
    return [
        {
            "way": way,
            **spread(values),
            "images/s": count / statistics.median(values),
            "COCO hours": statistics.median(values) / count * COCO_IMAGES / 3600,
            "bytes/image": sizes[way] // count,
            "COCO MB": sizes[way] / count * COCO_IMAGES / 1e6,
            "times faster": released / statistics.median(values),
            "times smaller": sizes[RELEASED] / sizes[way],
        }
        for way, values in seconds.items()
    ]


def main(
    images: Annotated[Path | None, typer.Option(help="Folder of photographs.")] = None,
    count: Annotated[int, typer.Option(help="Images, a multiple of 16.")] = 32,
    repeats: Annotated[int, typer.Option(help="Timed turns of every way.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    name: Annotated[str, typer.Option(help="Write benchmarks/results/NAME.json.")] = "",
) -> None:
    """Print images per second, bytes per image, ratios to the released way, and the split."""
    where = torch.device(device)
    with tempfile.TemporaryDirectory() as scratch:
        if images is None:
            images = Path(scratch) / "pictures"
            make_pictures(images, count)
        listed = images_of_path(images)
        bench = Bench(replace(listed, names=listed.names[:count]), where, Path(scratch))
        require_alike(bench.images, count)
        require_faiss().omp_set_num_threads(torch.get_num_threads())
        watches = {way: Stopwatch(where) for way in WAYS}
        ways = {way: bench.ours(way) for way in WAYS} | {RELEASED: bench.released}
        clocked = {f"{way} by part": bench.ours_by_part(way, w) for way, w in watches.items()}
        seconds = interleaved(ways | clocked, repeats, where)
    rows = report({way: seconds[way] for way in ways}, bench.bytes, count)
    parts_rows: list[dict[str, Any]] = [
        {"way": way, **row} for way, watch in watches.items() for row in watch.split()
    ]
    for table in (rows, parts_rows):
        print_table(table)
        print()
    if name:
        said = {"images": count, "K": CLUSTERS, "group": GROUP}
        found = {"table": rows, "parts": parts_rows}
        print(keep(name, {**said, "hardware": hardware(where), **found}))


if __name__ == "__main__":
    typer.run(main)
