"""PNGs of segments: COCO's panoptic colours and VOC's object numbers, and how they break."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbench.datasets import DataError, DataRoots, content_id, segment_maps

SIZE = (6, 8)  # height, width
THING, STUFF, CROWD = 3226956, 7, 300


def write_panoptic(root: Path) -> Path:
    """Write coco2017/val with two images; 2 has a thing, a stuff segment, a crowd and a gap."""
    folder = root / "coco"
    maps = folder / "annotations/panoptic_val2017"
    maps.mkdir(parents=True)
    (folder / "val2017").mkdir()
    for number in (1, 2):
        Image.new("RGB", SIZE[::-1]).save(folder / f"val2017/{number:012d}.jpg")
    ids = np.full(SIZE, STUFF)
    ids[:2], ids[2, :4], ids[5] = THING, CROWD, 0
    write_ids(maps / "000000000002.png", ids)
    segments = [
        {"id": THING, "category_id": 1, "iscrowd": 0},
        {"id": STUFF, "category_id": 200, "iscrowd": 0},
        {"id": CROWD, "category_id": 1, "iscrowd": 1},
    ]
    images = [
        {"id": n, "file_name": f"{n:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in (1, 2)
    ]
    row = {"image_id": 2, "file_name": "000000000002.png", "segments_info": segments}
    categories = [{"id": 1, "isthing": 1}, {"id": 200, "isthing": 0}]
    content = {"images": images, "annotations": [row], "categories": categories}
    (folder / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    return folder


def write_ids(path: Path, ids: np.ndarray) -> None:
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)


def write_objects(root: Path) -> Path:
    """Write voc2012/val with two images, of which the second has two objects, apart by void."""
    folder = root / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationObject", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for stem in ("a", "b"):
        Image.new("RGB", SIZE[::-1]).save(folder / f"JPEGImages/{stem}.jpg")
    (folder / "ImageSets/Main/val.txt").write_text("a\nb\n")
    numbers = np.zeros(SIZE, np.uint8)
    numbers[:, 2:4], numbers[:, 4], numbers[:, 5:] = 1, 255, 2
    png = Image.fromarray(numbers).convert("P")
    png.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    png.save(folder / "SegmentationObject/b.png")
    return folder


def test_panoptic_segments_are_regions_and_only_things_are_objects(tmp_path: Path):
    write_panoptic(tmp_path)
    (found,) = segment_maps("coco2017/val:segments", DataRoots(tmp_path))
    assert found.path.name == "000000000002.jpg"
    numbers, objects = found.regions()
    (thing,) = objects
    assert (numbers[:2] == thing).all()
    assert (numbers[2, :4] == -1).all()
    assert (numbers[5] == -1).all()
    stuff = numbers[2, 4]
    assert stuff not in (-1, thing)
    assert (numbers[3:5] == stuff).all()


def test_voc_objects_keep_their_numbers_and_void_is_ignored(tmp_path: Path):
    write_objects(tmp_path)
    (found,) = segment_maps("voc2012/val", DataRoots(tmp_path))
    assert (found.path.name, found.height, found.width) == ("b.jpg", *SIZE)
    numbers, objects = found.regions()
    assert objects == {1, 2}
    assert numbers[0].tolist() == [0, 0, 1, 1, -1, 2, 2, 2]


def test_boxes_alone_are_refused_with_what_to_unpack(tmp_path: Path):
    folder = write_objects(tmp_path)
    (folder / "SegmentationObject/b.png").unlink()
    with pytest.raises(DataError, match=r"voc2012/val has boxes but no outlines.*unpack"):
        segment_maps("voc2012/val", DataRoots(tmp_path))
    with pytest.raises(DataError, match="no outlines"):
        content_id("voc2012/val:segments", DataRoots(tmp_path))


def test_a_missing_panoptic_file_names_the_instances_as_way_out(tmp_path: Path):
    folder = write_panoptic(tmp_path)
    (folder / "annotations/panoptic_val2017.json").unlink()
    with pytest.raises(DataError, match=r"panoptic_val2017\.json is not there.*coco2017/val"):
        segment_maps("coco2017/val:segments", DataRoots(tmp_path))


def test_lvis_has_no_such_maps(tmp_path: Path):
    for ask in (segment_maps, content_id):
        with pytest.raises(DataError, match=r"lvis_v1/val:segments has no PNGs"):
            ask("lvis_v1/val:segments", DataRoots(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"names 000000000002\.png, which is not in"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read"),
        (lambda path: write_ids(path, np.full(SIZE, 99)), "segments that the JSON lacks: 99"),
        (lambda path: write_ids(path, np.full((6, 6), STUFF)), r"is \(6, 6\).*says \(6, 8\)"),
        (lambda path: Image.new("L", SIZE[::-1]).save(path), "has no colours"),
    ],
    ids=["gone", "cut short", "unknown id", "other size", "gray"],
)
def test_a_broken_panoptic_png_is_named(change, message: str, tmp_path: Path):
    folder = write_panoptic(tmp_path)
    maps = folder / "annotations/panoptic_val2017"
    Image.new("RGB", SIZE[::-1]).save(maps / "000000000001.png")
    change(maps / "000000000002.png")
    with pytest.raises(DataError, match=message):
        segment_maps("coco2017/val:segments", DataRoots(tmp_path))[0].regions()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("image_id", 5, "unknown image 5"), ("segments_info", [{"id": 1}], "no 'category_id'")],
)
def test_a_broken_panoptic_json_is_named(key: str, value, message: str, tmp_path: Path):
    path = write_panoptic(tmp_path) / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        segment_maps("coco2017/val:segments", DataRoots(tmp_path))


def test_the_id_changes_with_the_maps(tmp_path: Path):
    roots = DataRoots(tmp_path)
    coco, voc = write_panoptic(tmp_path), write_objects(tmp_path)
    before = content_id("coco2017/val:segments", roots), content_id("voc2012/val:segments", roots)
    ids = np.random.default_rng(0).integers(0, 9, SIZE)
    write_ids(coco / "annotations/panoptic_val2017/000000000002.png", ids)
    Image.fromarray(ids.astype(np.uint8)).save(voc / "SegmentationObject/b.png")
    after = content_id("coco2017/val:segments", roots), content_id("voc2012/val:segments", roots)
    assert before[0] != after[0]
    assert before[1] != after[1]
