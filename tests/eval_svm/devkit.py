"""A VOC devkit of coloured pictures: a colour channel per class, so that anything can learn it."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def write_devkit(root: Path, num_train: int = 24, num_test: int = 16) -> Path:
    folder = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    start = 0
    for split, number in (("trainval", num_train), ("test", num_test)):
        ids = [f"{start + i:06d}" for i in range(number)]
        start += number
        present = np.arange(number)[:, None] % 3 == np.arange(3)
        for image_id, row in zip(ids, present, strict=True):
            pixels = generator.normal(60, 20, (48, 64, 3)) + 120 * row[::-1]
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / "JPEGImages" / f"{image_id}.jpg")
            (folder / "Annotations" / f"{image_id}.xml").write_text("<annotation/>")
        main = folder / "ImageSets" / "Main"
        (main / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
        for column, name in enumerate(CLASSES):
            lines = [
                f"{i} {1 if p else -1:2d}\n" for i, p in zip(ids, present[:, column], strict=True)
            ]
            (main / f"{name}_{split}.txt").write_text("".join(lines))
    return root
