"""LVIS v1 and v0.5: where an image lies in COCO's folders, and the fields of federated data."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sslbench.datasets import coco
from sslbench.datasets.images import index_folder
from sslbench.datasets.records import Dataset
from sslbench.datasets.roots import DataError, unknown_split

VERSIONS = {"lvis_v1": "v1", "lvis_v05": "v0.5"}
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
FREQUENCIES = ("r", "c", "f")  # rare, common, frequent
NAME_LENGTH = len("000000123456.jpg")  # of COCO 2017; v0.5 may say COCO_val2014_000000123456.jpg

Place = tuple[str, str]  # folder of COCO, file


def lvis_json(dataset: str, split: str, folder: Path) -> Path:
    """Return the path of the JSON of a split of ``lvis_v1`` or ``lvis_v05``."""
    if split not in coco.SPLITS:
        raise unknown_split(dataset, split, coco.SPLITS, folder)
    return folder / f"lvis_{VERSIONS[dataset]}_{split}.json"


@coco.no_collection()
def read_lvis(dataset: str, split: str, folder: Path, coco_folder: Path) -> Dataset:
    """Read an LVIS split; ``coco_url`` places each image (val of v1 has images of train2017 too).

    An image without ``coco_url`` is looked for in both folders by its COCO 2017 name.
    """
    json_path = lvis_json(dataset, split, folder)
    content = coco.load_json(json_path)
    rows = coco.image_rows(content, FEDERATED, json_path)
    places = {row["id"]: _places(row, json_path) for row in rows}
    present = _present(coco_folder, {place[0] for found in places.values() for place in found})
    paths = {
        image_id: next((coco_folder.joinpath(*place) for place in found if place in present), None)
        for image_id, found in places.items()
    }
    data = coco.assemble(dataset, split, content, paths, json_path, coco_folder)
    _require_frequencies(content, json_path)
    _require_known_categories(rows, data.category_ids, json_path)
    return data


def _present(coco_folder: Path, folders: Collection[str]) -> set[Place]:
    return {
        (name, file)
        for name in folders
        if (coco_folder / name).is_dir()
        for file in index_folder(coco_folder / name).values()
    }


def _places(row: Mapping[str, Any], json_path: Path) -> list[Place]:
    """Where the image may lie, the likeliest place first."""
    url, name = row.get("coco_url"), row.get("file_name")
    if isinstance(url, str) and url.count("/") >= 1:
        folder, file = url.rsplit("/", 2)[-2:]
        return [(folder, file)]
    if isinstance(name, str) and name:
        file = name.rpartition("/")[2][-NAME_LENGTH:]
        return [(f"{split}2017", file) for split in coco.SPLITS]
    raise DataError(
        f"{json_path}: images entry with id {row['id']} has no 'coco_url' and no 'file_name'; "
        "without one of them nobody knows its image"
    )


def _require_frequencies(content: Mapping[str, Any], json_path: Path) -> None:
    for row in coco.json_rows(content, "categories", ("frequency",), json_path):
        if row["frequency"] not in FREQUENCIES:
            raise DataError(
                f"{json_path}: category {row['id']} has the frequency {row['frequency']!r}; "
                "LVIS has r, c and f, which its AP is split by. Fetch the file again"
            )


def _require_known_categories(
    rows: list[dict[str, Any]], category_ids: Collection[int], json_path: Path
) -> None:
    known = set(category_ids)
    for row in rows:
        for key in FEDERATED:
            ids = row[key]
            if not isinstance(ids, list) or not all(type(number) is int for number in ids):
                raise DataError(
                    f"{json_path}: image {row['id']} has the bad {key} {ids!r}; "
                    "it must be a list of category ids. Fetch the file again"
                )
            if unknown := set(ids) - known:
                raise DataError(
                    f"{json_path}: image {row['id']} has unknown categories in {key}: "
                    f"{sorted(unknown)}. Fetch the file again"
                )
