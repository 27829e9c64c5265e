"""A folder of small images and a config that trains on them in seconds."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.config import PretrainConfig
from sslbench import dist
from sslbench.config import build
from sslbench.datasets import DataRoots, ImageList, images

TINY = {
    "batch_size": 4,
    "crop_size": 32,
    "arch": {"depth": 18, "width": 0.125},
    "method": {
        "warmup_epochs": 1,
        "refresh_masks_every": 2,
        "clustering_every": 3,
        "contrast_grid": 4,
        "masks_per_view": 4,
        "hidden": 16,
        "embedding": 8,
        "masks": {"max_clusters": 6, "images_per_clustering": 3, "iterations": 4},
        "clustering": {"max_clusters": 8, "images_per_group": 2, "iterations": 4},
    },
    "optimizer": {"name": "lars", "lr": 1.0},
    "schedule": {
        "epochs": 4,
        "lr_shape": "cosine",
        "lr_warmup_epochs": 1,
        "lr_drops": [],
        "keep_epochs": [2],
    },
}


def write_images(folder: Path, count: int = 10) -> None:
    """Blocky colour images of different sizes."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        blocks = generator.integers(0, 256, (4 + number % 3, 5, 3), dtype=np.uint8)
        size = (40 + 3 * number, 48)
        image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
        image.save(folder / f"image_{number:02d}.png")


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """Ten images."""
    folder = tmp_path / "images"
    write_images(folder)
    return folder


@pytest.fixture
def image_list(image_dir: Path) -> ImageList:
    """The same as a list."""
    return images(image_dir, DataRoots(image_dir))


@pytest.fixture
def tiny() -> PretrainConfig:
    """Four epochs of two steps: warm-up, three mask generations, periodic clustering."""
    return build(PretrainConfig, TINY, where="tiny")


class _WaitingError(Exception):
    """A rank has done its share and waits for the others."""


@pytest.fixture
def in_turn(monkeypatch):
    """Let each of several ranks make its parts of a mask generation; the first then joins them."""

    def run(world: int, work: Callable[[], object]) -> None:
        monkeypatch.setattr(dist, "world_size", lambda: world)
        told: list[int] = []
        for turn, rank in enumerate((*range(world), 0)):

            def wait(turn=turn) -> None:
                if turn < world:
                    raise _WaitingError

            def from_main(numbers, rank=rank) -> list[int]:
                told[:] = numbers if rank == 0 else told
                return list(told)

            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(dist, "is_main", lambda rank=rank: rank == 0)
            monkeypatch.setattr(dist, "from_main", from_main)
            monkeypatch.setattr(
                dist, "patient_barrier", lambda wait=wait: contextlib.nullcontext(wait)
            )
            with contextlib.suppress(_WaitingError):
                work()

    return run
