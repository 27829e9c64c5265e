"""Scenes as LVIS v1 and v0.5 over the COCO pictures: a category is a texture and a shape.

That makes a long tail of categories.

The annotation is federated as in LVIS: a picture's categories are those with annotations (some
marked as not exhaustive) and those verified absent; of all others nothing is known.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sslbench.rng import numpy_generator
from sslbench.scenes.coco_json import Entry, Row, write_content
from sslbench.scenes.drawing import SHAPE_NAMES, TEXTURE_NAMES

# A category is rare, common up to so many training images (LVIS, far larger: 10, 100).
RARE_IMAGES, COMMON_IMAGES = 3, 20
NUM_NEGATIVES = 6
FORGET_SHARE = 0.3  # of the categories with several instances in a picture

Key = tuple[int, int]  # texture, shape
Version = Literal["v1", "v0.5"]


class _Picture(NamedTuple):
    """A picture with what of it is annotated."""

    image: dict[str, Any]
    kept: list[Row]
    incomplete: set[Key]
    present: set[Key]


def write_lvis(
    folder: Path, version: Version, splits: Mapping[str, Sequence[Entry]], seed: int
) -> None:
    """Write lvis_VERSION_train.json and ..._val.json with the categories of the training rows.

    Args:
        splits: "train" and "val".
    """
    pictures = {name: [_federate(found, seed) for found in split] for name, split in splits.items()}
    categories = _categories(pictures["train"])
    for name, split in pictures.items():
        images = [_image(picture, categories, version, name, seed) for picture in split]
        annotations = [
            {**row.outline, "category_id": categories[_key(row)]["id"]}
            for picture in split
            for row in picture.kept
            if _key(row) in categories
        ]
        path = folder / f"lvis_{version}_{name}.json"
        write_content(path, images, annotations, list(categories.values()))


def _key(row: Row) -> Key:
    return row.texture, row.shape


def _federate(found: Entry, seed: int) -> _Picture:
    """Leave out heaps, and here and there one of several instances."""
    generator = numpy_generator(seed, "lvis_federate", found.image["id"])
    kept = [row for row in found.rows if not row.crowd]
    present = {_key(row) for row in found.rows}
    incomplete = {_key(row) for row in found.rows if row.crowd}
    for key, count in sorted(Counter(map(_key, kept)).items()):
        if count > 1 and generator.random() < FORGET_SHARE:
            kept.remove(next(row for row in kept if _key(row) == key))
            incomplete.add(key)
    return _Picture(found.image, kept, incomplete & {_key(row) for row in kept}, present)


def _categories(pictures: Sequence[_Picture]) -> dict[Key, dict[str, Any]]:
    images: dict[Key, set[int]] = defaultdict(set)
    instances: Counter[Key] = Counter()
    for picture in pictures:
        for row in picture.kept:
            images[_key(row)].add(picture.image["id"])
            instances[_key(row)] += 1
    return {
        key: {
            "id": number,
            **_names(key),
            "frequency": _frequency(len(images[key])),
            "image_count": len(images[key]),
            "instance_count": instances[key],
        }
        for number, key in enumerate(sorted(images), start=1)
    }


def _names(key: Key) -> dict[str, Any]:
    texture, shape = TEXTURE_NAMES[key[0]], SHAPE_NAMES[key[1]]
    name = f"{texture}_{shape}"
    return {
        "name": name,
        "synset": f"{name}.n.01",
        "synonyms": [name],
        "def": f"a {texture} {shape}",
    }


def _frequency(num_images: int) -> str:
    if num_images <= RARE_IMAGES:
        return "r"
    return "c" if num_images <= COMMON_IMAGES else "f"


def _image(
    picture: _Picture,
    categories: Mapping[Key, dict[str, Any]],
    version: Version,
    split: str,
    seed: int,
) -> dict[str, Any]:
    """Return the image entry. As in LVIS, v1 has no file_name and its coco_url says where the image
    lies; here v0.5 has no coco_url, and its names are those of COCO 2014.
    """
    generator = numpy_generator(seed, "lvis_negatives", picture.image["id"])
    absent = [category["id"] for key, category in categories.items() if key not in picture.present]
    negatives = generator.choice(absent, min(NUM_NEGATIVES, len(absent)), replace=False)
    incomplete = [categories[key]["id"] for key in sorted(picture.incomplete) if key in categories]
    image = dict(picture.image)
    name = image.pop("file_name")
    if version == "v0.5":
        del image["coco_url"]
        image["file_name"] = f"COCO_{split}2014_{name}"
    return {
        **image,
        "neg_category_ids": np.sort(negatives).tolist(),
        "not_exhaustive_category_ids": incomplete,
    }
