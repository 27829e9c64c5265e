"""Masks from annotations: categories over background, and annotations that count."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pretrain.config import PretrainConfig
from pretrain.masks.ground_truth import Annotations, category_map
from pretrain.masks.segmentations import object_mask, require_segmentations
from pretrain.masks.sources import make_fixed_masks
from pretrain.masks.store import MaskError
from pretrain.masks.truth import AnnotatedImages
from pretrain.stage import Pretrain
from sslbench.config import ConfigError, build
from sslbench.datasets import DataError, DataRoots, Dataset, Object, Record, images, images_id, only
from sslbench.log import RunLog
from sslbench.stage import content_ids, run_standalone

SPEC = "coco2017/train"


def square(left: int, top: int, side: int) -> list[list[float]]:
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def write_coco(root: Path, *, num_images: int = 10, side: int = 32) -> DataRoots:
    """Image 1 has objects of two categories, 2 has none, the rest are unknown to the JSON."""
    (root / "train2017").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(1, num_images + 1):
        pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"train2017/{number:012d}.jpg")
    rows = [
        {"id": 1, "category_id": 7, "segmentation": square(16, 8, side), "area": side**2},
        {"id": 2, "category_id": 3, "segmentation": square(24, 16, 8), "area": 64},
    ]
    common = {"image_id": 1, "bbox": [16, 8, side, side], "iscrowd": 0}
    payload = {
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": 48, "width": 64} for n in (1, 2)
        ],
        "annotations": [row | common for row in rows],
        "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "table"}],
    }
    (root / "annotations/instances_train2017.json").write_text(json.dumps(payload))
    return DataRoots(root)


def make(roots: DataRoots, folder: Path):
    listed = images(SPEC, roots)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with RunLog(folder.parent) as log:
        return make_fixed_masks(
            "ground_truth",
            listed,
            images_id(listed),
            folder,
            log,
            annotations=Annotations(SPEC, roots),
        )


def test_pixels_have_their_category_and_small_objects_lie_in_front(tmp_path):
    store = make(write_coco(tmp_path / "coco"), tmp_path / "run/masks")
    expected = np.zeros((6, 8), np.uint8)
    expected[1:5, 2:6] = 2  # table, the second category
    expected[2, 3] = 1  # cup
    assert np.array_equal(store.read(0), expected)


def test_images_without_objects_are_background(tmp_path):
    store = make(write_coco(tmp_path / "coco"), tmp_path / "run/masks")
    assert all((store.read(index) == 0).all() for index in range(1, 10))


def test_a_crowd_counts_as_its_category(tmp_path):
    code = coco_mask.encode(np.asfortranarray(np.ones((8, 8), np.uint8)))
    crowd = Object(79, (0, 0, 8, 8), 64, True, False, {**code}, 1)
    assert (category_map(Record(1, tmp_path / "x.jpg", 8, 8, (crowd,))) == 80).all()


def test_other_annotations_make_other_masks(tmp_path):
    make(write_coco(tmp_path / "coco"), tmp_path / "run/masks")
    store = make(write_coco(tmp_path / "coco", side=16), tmp_path / "run/masks")
    assert (store.read(0) > 0).sum() == 4


def test_annotations_of_an_image_of_another_size_are_refused(tmp_path):
    roots = write_coco(tmp_path / "coco")
    Image.new("RGB", (40, 40)).save(tmp_path / "coco/train2017/000000000001.jpg")
    with pytest.raises(DataError, match=r"000000000001\.jpg is \(40, 40\)"):
        make(roots, tmp_path / "run/masks")


def test_objects_without_a_mask_are_refused(tmp_path):
    roots = write_coco(tmp_path / "coco")
    path = tmp_path / "coco/annotations/instances_train2017.json"
    payload = json.loads(path.read_text())
    del payload["annotations"][0]["segmentation"]
    path.write_text(json.dumps(payload))
    with pytest.raises(MaskError, match="a box but no mask"):
        make(roots, tmp_path / "run/masks")


def change_segmentation(roots: DataRoots, segmentation: object) -> Path:
    """Give the first object another segmentation."""
    path = roots.root / "annotations/instances_train2017.json"
    payload = json.loads(path.read_text())
    payload["annotations"][0]["segmentation"] = segmentation
    path.write_text(json.dumps(payload))
    return path


TWO_CORNERS = [8, 8, 40, 8]
NO_POLYGON = "which is no list x, y, x, y"
NO_SUM = "run lengths that do not add up to its 48x64 pixels"
MALFORMED = [
    ([], "no polygon of three corners"),
    ([TWO_CORNERS], "no polygon of three corners"),
    ([[8, 8, 40, 8, 40, 40, 8]], NO_POLYGON),
    ([[8, 8, 40, 8, 40, "x"]], NO_POLYGON),
    ([[8, 8, 40, 8, 40, float("nan")]], NO_POLYGON),
    ([8, 8, 40, 8, 40, 40], "the polygon 8, " + NO_POLYGON),
    ("polygon", "is 'polygon' instead of polygons or run lengths"),
    ({"size": [40, 64], "counts": [0, 40 * 64]}, r"of size \[40, 64\] but the image of \[48, 64\]"),
    ({"counts": [0, 48 * 64]}, "of size None but"),
    ({"size": [48, 64]}, NO_SUM),
    ({"size": [48, 64], "counts": [10, 20]}, NO_SUM),
    ({"size": [48, 64], "counts": [-8, 48 * 64 + 8]}, NO_SUM),
    ({"size": [48, 64], "counts": "garbage"}, NO_SUM),
    ({"size": [48, 64], "counts": ""}, NO_SUM),
    ({"size": [48, 64], "counts": "\u00e9"}, NO_SUM),
]


@pytest.mark.parametrize(("segmentation", "told"), MALFORMED)
def test_a_malformed_segmentation_is_named_with_its_file_and_image(segmentation, told, tmp_path):
    roots = write_coco(tmp_path / "coco")
    path = change_segmentation(roots, segmentation)
    named = rf"^{path}: the segmentation of annotation 1, in 0*1\.jpg, .*{told}"
    with pytest.raises(DataError, match=named):
        make(roots, tmp_path / "run/masks")
    with pytest.raises(DataError, match=named):
        AnnotatedImages.load(SPEC, roots)


def test_a_polygon_of_two_corners_beside_a_whole_one_encloses_nothing(tmp_path):
    plain = make(write_coco(tmp_path / "coco"), tmp_path / "run/plain")
    roots = write_coco(tmp_path / "coco")
    change_segmentation(roots, [TWO_CORNERS, *square(16, 8, 32)])
    assert np.array_equal(make(roots, tmp_path / "run/masks").read(0), plain.read(0))


def test_runs_are_read_as_numbers_and_compressed(tmp_path):
    generator = np.random.default_rng(0)
    for size in ((48, 64), (1, 1), (300, 200)):
        mask_HW = generator.random(size).round().astype(np.uint8)
        mask_HW[: size[0] // 2] = 0  # long runs and short ones
        code = coco_mask.encode(np.asfortranarray(mask_HW))
        flat = np.concatenate([[0], mask_HW.T.ravel()])  # the first run is of zeros
        ends = np.flatnonzero(np.diff(flat))
        runs = np.diff([0, *ends, mask_HW.size]).tolist()
        for counts in (code["counts"], code["counts"].decode(), runs):
            item = Object(0, (0, 0, 1, 1), 1, True, False, {"size": [*size], "counts": counts}, 5)
            record = Record(1, tmp_path / "x.jpg", *size, (item,))
            require_segmentations(Dataset("coco2017", "train", ("x",), (1,), (record,), None))
            assert np.array_equal(object_mask(item, record), mask_HW.astype(bool))


def test_lvis_images_are_matched_by_folder_and_name(tmp_path):
    coco = write_coco(tmp_path / "coco").root
    payload = json.loads((coco / "annotations/instances_train2017.json").read_text())
    for row in payload["images"]:
        row["coco_url"] = f"http://images.cocodataset.org/train2017/{row['file_name']}"
        row |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for category in payload["categories"]:
        category["frequency"] = "f"
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis/lvis_v1_val.json").write_text(json.dumps(payload))
    annotations = Annotations("lvis_v1/val", DataRoots(tmp_path))
    listed = images("lvis_v1/val", DataRoots(tmp_path))
    assert listed.name(0) == "train2017/000000000001.jpg"
    assert annotations.labels(listed.name(0), (48, 64)).max() == 2


def test_images_of_which_none_is_annotated_are_refused(image_list, tmp_path):
    annotations = Annotations(SPEC, write_coco(tmp_path / "coco"))
    with (
        RunLog(tmp_path) as log,
        pytest.raises(DataError, match=r"none of the 10 images, as image_00"),
    ):
        make_fixed_masks(
            "ground_truth", image_list, "id", tmp_path / "m", log, annotations=annotations
        )


@pytest.mark.parametrize("part", ["segments", "labels", "images"])
def test_another_part_of_a_split_than_its_instances_is_refused(part, tmp_path):
    with pytest.raises(
        DataError, match=rf"so that {SPEC}:{part} cannot be had: give images='{SPEC}'"
    ):
        Annotations(f"{SPEC}:{part}", DataRoots(tmp_path))


def _config(tiny, source: str, **changes) -> PretrainConfig:
    table = json.loads(tiny.model_dump_json()) | changes
    table["method"] |= {"warmup_epochs": 0, "refresh_masks_every": 0}
    table["method"]["masks"]["source"] = source
    return build(PretrainConfig, table, where="test")


def test_a_folder_of_images_has_no_annotations(tiny):
    with pytest.raises(ConfigError, match=r"needs annotations, and images='photos'"):
        _config(tiny, "ground_truth", images="photos")


def test_annotations_count_where_they_are_the_masks(tiny, tmp_path):
    for source, counts in (("ground_truth", True), ("grid", False)):
        stage = Pretrain(_config(tiny, source, images=SPEC))
        before = content_ids(stage, write_coco(tmp_path / "coco"))
        after = content_ids(stage, write_coco(tmp_path / "coco", side=16))
        assert (before != after) == counts
    assert stage.needs() == (only("images", SPEC),)


def test_a_run_trains_on_ground_truth(tiny, tmp_path):
    roots = write_coco(tmp_path / "coco")
    cfg = _config(tiny, "ground_truth", images=SPEC)
    folder, made = run_standalone(Pretrain(cfg), inputs={}, data=roots, out=tmp_path / "run")
    manifest = json.loads((folder / made["masks"] / "manifest.json").read_text())
    assert manifest["source"] == "ground_truth"
    assert manifest["annotations"] == Annotations(SPEC, roots).content_id()
