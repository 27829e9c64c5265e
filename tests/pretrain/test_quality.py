"""Stores measured on annotated images: what is averaged over what, and data that do not fit."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pretrain.masks import quality_command
from pretrain.masks.agreement import Annotated, agreement
from pretrain.masks.cells import enlarge
from pretrain.masks.quality import MEASURES, Quality, Scores, equal_grid, named, quality_of
from pretrain.masks.quality_command import run_quality
from pretrain.masks.quality_files import _draw_measure, generations, summary, write_quality
from pretrain.masks.store import MaskEntry, MaskError, MaskStore, stored_size, write_store
from pretrain.masks.truth import AnnotatedImages, instance_map, regions
from sslbench.datasets import DataError, DataRoots, Object, Record, images, images_id

SPEC = "coco2017/val"
SIZES = [(48, 64), (64, 48), (40, 72)]  # height, width of the images


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    """Three images: the first has one square, the second two, the third a crowd only."""
    root = tmp_path / "data/coco"
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    rows, objects = [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        name = f"{number:012d}.jpg"
        Image.new("RGB", (width, height)).save(root / "val2017" / name)
        rows.append({"id": number, "file_name": name, "height": height, "width": width})
    for image, left, crowd in ((1, 8, 0), (2, 0, 0), (2, 24, 0), (3, 0, 1)):
        square = [left, 8, left + 16, 8, left + 16, 24, left, 24]
        objects.append(
            {"id": len(objects) + 1, "image_id": image, "category_id": 1, "iscrowd": crowd}
            | {"bbox": [left, 8, 16, 16], "area": 256, "segmentation": [square]}
        )
    content = {
        "images": rows,
        "annotations": objects,
        "categories": [{"id": 1, "name": "square"}],
    }
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return DataRoots(tmp_path / "data")


def make_store(folder: Path, roots: DataRoots, seed: int = 0, **manifest) -> Path:
    """Random masks, cluster numbers 4, 5, 6."""
    generator = np.random.default_rng(seed)
    entries = [
        MaskEntry(generator.integers(0, 3, stored_size(*size), np.uint8), *size, 4 + n, 0)
        for n, size in enumerate(SIZES)
    ]
    manifest = {"source": "kmeans", "images_id": images_id(images(SPEC, roots)), **manifest}
    write_store(folder, entries, manifest)
    return folder


def test_a_store_is_averaged_over_annotated_images_and_best_overlap_over_objects(roots, tmp_path):
    folder = make_store(tmp_path / "epoch_0006", roots)
    quality = quality_of([folder], SPEC, roots)
    assert list(quality.sources) == ["kmeans_epoch_0006", "grid5x5"]
    assert quality.names == ("000000000001.jpg", "000000000002.jpg")
    annotated = AnnotatedImages.load(SPEC, roots)
    store = MaskStore(folder, annotated.images_id)
    one, two = (
        agreement(
            enlarge(store.read(index), record.height, record.width),
            Annotated.of(*regions(record)),
        )
        for index, record in annotated.records
    )
    found = quality.sources["kmeans_epoch_0006"]
    assert found.mean("ari") == pytest.approx((one.ari + two.ari) / 2)
    assert found.mean("best_overlap") == pytest.approx(
        (one.best_overlap + 2 * two.best_overlap) / 3
    )
    assert found.clusters_I.tolist() == [4, 5]


def test_workers_find_the_same(roots, tmp_path):
    folder = make_store(tmp_path / "epoch_0006", roots)
    alone, helped = (quality_of([folder], SPEC, roots, num_workers=n) for n in (0, 2))
    for name, scores in alone.sources.items():
        assert np.array_equal(scores.values_IM, helped.sources[name].values_IM, equal_nan=True)


def test_results_carry_all_measures_of_all_sources(roots, tmp_path):
    folders = [make_store(tmp_path / f"epoch_{e:04d}", roots, seed=e) for e in (1, 6)]
    rows = {r.metric: r for r in quality_of(folders, SPEC, roots).results()}
    sources = ("kmeans_epoch_0001", "kmeans_epoch_0006", "grid5x5")
    names = ("ari", "hungarian_miou", "best_overlap", "boundary_recall", "majority_miou")
    expected = {f"{name}_{source}" for name in (*names, "segments") for source in sources}
    assert set(rows) == expected | {f"ari_equal_grid_{source}" for source in sources[:2]}
    assert rows["segments_grid5x5"].unit == "segments"
    assert 20 < rows["segments_grid5x5"].value <= 25
    assert 1 < rows["boundary_recall_grid5x5"].value <= 100
    assert all(r.task == "mask_quality" and r.num_images == 2 for r in rows.values())


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (12, 3, 4), (25, 4, 6), (256, 14, 18)]
)
def test_an_equal_grid_has_about_as_many_square_cells(count: int, rows: int, columns: int):
    grid = equal_grid(count, 480, 640)
    assert grid.shape == (60, 80)
    assert (len(np.unique(grid[:, 0])), len(np.unique(grid[0]))) == (rows, columns)
    assert len(np.unique(grid)) == rows * columns
    heights = np.unique(grid[:, 0], return_counts=True)[1]
    assert heights.max() - heights.min() <= 1


def test_an_equal_grid_is_no_finer_than_the_cells():
    assert len(np.unique(equal_grid(256, 16, 24))) == 6


def test_a_grid_is_its_own_equal(roots, tmp_path):
    entries = [MaskEntry(equal_grid(6, *size).astype(np.uint8), *size, 6, 0) for size in SIZES]
    manifest = {"source": "grid", "images_id": images_id(images(SPEC, roots))}
    write_store(tmp_path / "six", entries, manifest)
    found = quality_of([tmp_path / "six"], SPEC, roots).sources["grid_six"]
    assert np.array_equal(found.values_IM, found.equal_grid_IM)


def test_a_source_is_called_by_its_manifest_and_one_of_a_second_run_in_full(roots, tmp_path):
    found = named(
        MaskStore(make_store(tmp_path / folder, roots, source="felzenszwalb"), key)
        for folder in ("a/epoch_0001", "b/epoch_0001", "b/epoch_0006")
        for key in [images_id(images(SPEC, roots))]
    )
    assert list(found) == [
        "felzenszwalb_epoch_0001",
        f"felzenszwalb_{tmp_path}/b/epoch_0001",
        f"felzenszwalb_{tmp_path}/b/epoch_0006",
    ]


def scores(values: dict[str, list[float]], clusters: list[int]) -> Scores:
    table = np.ones((len(clusters), len(MEASURES)))
    for name, column in values.items():
        table[:, MEASURES.index(name)] = column
    return Scores({"source": "kmeans", "epoch": 7}, np.array(clusters), table, table / 2)


def quality(source: Scores) -> Quality:
    sizes = np.array([(255, 256), (256, 256), (512, 512), (480, 640)])
    return Quality(SPEC, "id", tuple("abcd"), sizes, {"kmeans_epoch_0007": source})


def test_a_store_by_two_spellings_counts_once_under_the_first(roots, tmp_path):
    folder = make_store(tmp_path / "run/masks/epoch_0001", roots)
    (tmp_path / "link").symlink_to(folder)
    for spellings in (
        [folder, folder.parent / ".." / "masks" / folder.name, tmp_path / "link"],
        [tmp_path / "link", folder],
    ):
        found = quality_of(spellings, SPEC, roots)
        assert list(found.sources) == [f"kmeans_{spellings[0].name}", "grid5x5"]


def test_a_store_may_be_called_what_would_be_a_formula(roots, tmp_path):
    folders = [make_store(tmp_path / name, roots) for name in ("a$b^{c$", "epoch_0001")]
    quality = quality_of(folders, SPEC, roots)
    assert write_quality(tmp_path, quality)["curve"] == "curve.png"


def test_no_folder_for_the_files_is_refused_before_the_work(roots, tmp_path, monkeypatch):
    folder = make_store(tmp_path / "m", roots)
    (tmp_path / "file").touch()
    monkeypatch.setattr(quality_command, "quality_of", lambda *_, **__: pytest.fail("measured"))
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ValueError, match=rf"^--out {out}: {tmp_path / 'file'} is there and no"):
            run_quality([folder], SPEC, roots, out=out)


def test_images_fall_into_sizes_and_cluster_numbers_at_the_stated_ends():
    found = quality(scores({}, [1, 4, 5, 256]))
    sizes = {name: np.flatnonzero(of).tolist() for name, of in found.size_bins().items()}
    assert sizes == {"small": [0], "medium": [1], "large": [2, 3]}
    bins = found.cluster_bins("kmeans_epoch_0007")
    where = {name: np.flatnonzero(of).tolist() for name, of in bins.items() if of.any()}
    assert where == {"1": [0], "2-4": [1], "5-8": [2], "129-256": [3]}


def test_what_cannot_be_measured_is_left_out_of_a_mean():
    nan = float("nan")
    found = quality(scores({"boundary_recall": [nan, 0.5, 0.25, nan]}, [2, 2, 2, 9]))
    kept = summary(found)["sources"]["kmeans_epoch_0007"]
    assert kept["all"]["boundary_recall"] == 37.5
    assert kept["by_image_size"]["small"]["boundary_recall"] is None
    assert kept["by_image_size"]["small"]["ari"] == 100
    assert kept["by_image_size"]["small"]["equal_grid"]["ari"] == 50
    assert kept["by_clusters"]["9-16"] == kept["by_clusters"]["9-16"] | {
        "num_images": 1,
        "boundary_recall": None,
        "segments": 1,
    }
    rows = {r.metric: r for r in found.results()}
    assert rows["boundary_recall_kmeans_epoch_0007"].num_images == 2


def test_every_image_has_a_row_for_every_source(roots, tmp_path):
    folder = make_store(tmp_path / "epoch_0006", roots)
    found = quality_of([folder], SPEC, roots)
    made = write_quality(tmp_path, found)
    assert made == {"quality": "quality.json", "images": "quality.csv", "curve": "curve.png"}
    with (tmp_path / "quality.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["source"], r["image"], r["image_size"], r["clusters"]) for r in rows] == [
        ("kmeans_epoch_0006", "000000000001.jpg", "small", "4"),
        ("kmeans_epoch_0006", "000000000002.jpg", "small", "5"),
        ("grid5x5", "000000000001.jpg", "small", "25"),
        ("grid5x5", "000000000002.jpg", "small", "25"),
    ]
    mean = np.mean([float(r["ari"]) for r in rows[:2]])
    assert mean == pytest.approx(found.sources["kmeans_epoch_0006"].mean("ari"), rel=1e-4)
    kept = json.loads((tmp_path / "quality.json").read_text())
    assert kept["sources"]["kmeans_epoch_0006"]["all"]["ari"] == pytest.approx(100 * mean, abs=1e-3)
    assert {*MEASURES, "equal_grid"} == set(kept["definitions"])


def several() -> Quality:
    """Two runs, fixed masks, and a control whose manifest has an epoch as well."""
    one = scores({}, [2, 2, 2, 2])
    grid = dataclasses.replace(one, manifest={"source": "grid"})
    names = ("kmeans_epoch_0100", "kmeans_epoch_0006", "kmeans_/b/epoch_0006", "random_network")
    sources = dict.fromkeys(names, one) | {"grid_epoch_0012": grid, "grid5x5": grid}
    return dataclasses.replace(quality(one), sources=sources)


def test_generations_are_what_is_called_by_source_and_epoch():
    assert generations(several()) == {
        ("kmeans", "kmeans_"): {"kmeans_epoch_0006": 6, "kmeans_epoch_0100": 100},
        ("kmeans", "kmeans_/b/"): {"kmeans_/b/epoch_0006": 6},
        ("grid", "grid_"): {"grid_epoch_0012": 12},
    }
    assert list(generations(several())["kmeans", "kmeans_"].values()) == [6, 100]


def test_two_runs_are_two_lines_and_a_control_lies_across():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    _draw_measure(axis, several(), "ari")
    drawn = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert {name: at for name, at in drawn.items() if "grid of" not in name} == {
        "kmeans": [6, 100],
        "kmeans_/b": [6],
        "grid": [12],
        "random network": [0, 1],  # from edge to edge
        "5x5 grid": [0, 1],
    }


def test_stores_of_no_epoch_have_no_curve(roots, tmp_path):
    folder = make_store(tmp_path / "grid", roots, source="grid")
    assert "curve" not in write_quality(tmp_path, quality_of([folder], SPEC, roots))


def test_masks_of_a_folder_are_matched_to_annotations_by_file_name(roots, tmp_path):
    few = tmp_path / "few"
    (few / "inner").mkdir(parents=True)
    picture = (roots.root / "coco/val2017/000000000002.jpg").read_bytes()
    (few / "inner/000000000002.jpg").write_bytes(picture)
    (few / "other.jpg").write_bytes(picture)
    entries = [MaskEntry(np.zeros((8, 6), np.uint8), 64, 48, 1, 0)] * 2
    manifest = {"source": "crop", "images_id": images_id(images(few, roots))}
    write_store(tmp_path / "crop", entries, manifest)
    found = quality_of([tmp_path / "crop"], SPEC, roots, masks_of=str(few))
    assert found.names == ("inner/000000000002.jpg",)
    assert found.sources["crop_crop"].mean("ari") == 0
    with pytest.raises(MaskError, match="another image list"):
        quality_of([tmp_path / "crop"], SPEC, roots)


def test_images_that_share_a_file_name_cannot_be_matched(roots, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "twice" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "twice" / folder / "x.jpg")
    with pytest.raises(DataError, match="same file name in several folders"):
        AnnotatedImages.load(SPEC, roots, str(tmp_path / "twice"))


def test_images_without_annotations_are_refused(roots, tmp_path):
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mine/x.jpg")
    with pytest.raises(DataError, match=r"coco2017/val annotates no object in the images of .*min"):
        AnnotatedImages.load(SPEC, roots, str(tmp_path / "mine"))


def test_an_image_under_a_crowd_has_nothing_to_measure(roots, tmp_path):
    path = roots.root / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    cover = content["annotations"][0] | {"id": 9, "iscrowd": 1, "area": 1}  # painted last
    content["annotations"].append(cover | {"segmentation": [[0, 0, 64, 0, 64, 48, 0, 48]]})
    path.write_text(json.dumps(content))
    found = quality_of([make_store(tmp_path / "epoch_0001", roots)], SPEC, roots)
    for scores in found.sources.values():
        assert np.isnan(scores.values_IM[0]).all()
        assert scores.num_images("ari") == 1
        assert scores.mean("ari") == scores.values_IM[1, MEASURES.index("ari")]


def test_boxes_are_no_truth(roots):
    path = roots.root / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="a box is no segment"):
        AnnotatedImages.load(SPEC, roots)


def test_masks_of_another_size_are_refused(roots, tmp_path):
    path = roots.root / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][1]["height"] = 63
    path.write_text(json.dumps(content))
    folder = make_store(tmp_path / "epoch_0001", roots)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"000000000002\.jpg says \(63, 48\)"):
            quality_of([folder], SPEC, roots, num_workers=workers)


def test_the_command_prints_a_row_a_source_and_keeps_the_files(roots, tmp_path):
    folder = make_store(tmp_path / "epoch_0006", roots)
    text = run_quality([folder], SPEC, roots, out=tmp_path / "new/out")
    head, titles, ours, grid = text.splitlines()
    assert head == "coco2017/val, 2 images, in %, segments counted"
    assert titles.split()[0] == "ari"
    assert ours.startswith("kmeans_epoch_0006 ")
    assert grid.startswith("grid5x5 ")
    assert (tmp_path / "new/out/quality.csv").exists()


def _object(box, area, *, crowd=False, segmentation=None):
    return Object(0, box, area, crowd, False, segmentation, 1)


def test_objects_are_painted_small_over_large_and_crowds_are_left_out(tmp_path):
    code = coco_mask.encode(np.asfortranarray(np.eye(8, dtype=np.uint8)))
    square = [[5.0, 5.0, 7.0, 5.0, 7.0, 7.0, 5.0, 7.0]]
    objects = (
        _object((5, 5, 7, 7), 4, segmentation=square),
        _object((0, 0, 8, 8), 8, crowd=True, segmentation={**code}),
        _object((4, 0, 8, 8), 32),
    )
    painted = instance_map(Record(1, tmp_path / "x.jpg", 8, 8, objects))
    assert (painted[5:7, 5:7] == 3).all()
    assert painted[0, 7] == 1
    assert painted[0, 0] == -1
    assert painted[7, 0] == 0


def test_cells_grow_to_eight_pixels():
    grown = enlarge(np.array([[1, 2], [3, 4]], np.uint8), 16, 16)
    assert np.array_equal(grown, np.kron([[1, 2], [3, 4]], np.ones((8, 8), int)))


def test_a_partial_last_cell_keeps_its_share():
    grown = enlarge(np.array([[0, 1]], np.uint8), 8, 12)
    assert grown.shape == (8, 12)
    assert np.array_equal(np.unique(grown), [0, 1])
