"""python -m pretrain.masks on real stores, whole and damaged."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pretrain.masks import refresh
from pretrain.masks.__main__ import app
from pretrain.masks.kmeans import KMeans
from pretrain.masks.refresh import Bootstrap
from pretrain.masks.sources import make_fixed_masks
from pretrain.masks.store import MaskEntry, MaskError, MaskStore, write_store
from sslbench.datasets import DataRoots, ImageList, images, images_id
from sslbench.log import RunLog
from sslbench.resnet import ResNet
from sslbench.rng import seeded
from tests.pretrain.test_ground_truth import SPEC, write_coco

SETTINGS = Bootstrap(
    ("layer2.2",), 2, 6, images_per_clustering=3, seed=7, epoch=2, rule=KMeans(iterations=2)
)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def make_grid(image_list: ImageList, folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with RunLog(folder.parent) as log:
        make_fixed_masks("grid", image_list, images_id(image_list), folder, log)
    return folder


def make_kmeans(image_list: ImageList, folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with seeded(0, "test"), RunLog(folder.parent) as log:
        backbone = ResNet(18, 0.125)
        refresh.refresh(backbone, image_list, images_id(image_list), folder, SETTINGS, log)
    return folder


@pytest.fixture
def store(image_list, tmp_path) -> Path:
    return make_grid(image_list, tmp_path / "run/masks/epoch_0001")


def change_manifest(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = {k: v for k, v in (manifest | values).items() if v is not None}
    (folder / "manifest.json").write_text(json.dumps(kept))


def change_index(folder: Path, field: str, row: int, value: int) -> None:
    index = np.load(folder / "index.npy")
    index[field][row] = value
    np.save(folder / "index.npy", index)


def rows(path: Path) -> list[dict[str, str]]:
    lines = [re.split(r"  +", line) for line in call("ls", path).stdout.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_ls_tells_what_each_generation_is_and_was_made_from(store, image_list):
    kmeans = make_kmeans(image_list, store.with_name("epoch_0002"))
    grid_row, kmeans_row = rows(store.parents[1])
    assert rows(store.parent) == [grid_row, kmeans_row]
    assert rows(kmeans) == [kmeans_row]
    size = sum(file.stat().st_size for file in store.iterdir())
    expected = {"name": "epoch_0001", "source": "grid", "images": "10", "state": "complete"}
    assert expected.items() <= grid_row.items()
    assert (grid_row["bytes"], grid_row["bytes/image"]) == (str(size), f"{size / 10:.0f}")
    assert (grid_row["layer"], grid_row["seed"], grid_row["backbone"]) == ("-", "-", "-")
    opened = MaskStore(kmeans, images_id(image_list))
    present = [len(np.unique(opened.read(index))) for index in range(10)]
    assert kmeans_row["labels"] == f"{np.median(present):g}"
    assert (kmeans_row["layer"], kmeans_row["K"], kmeans_row["seed"]) == ("layer2.2", "2-6", "7")
    assert kmeans_row["backbone"] == opened.manifest["backbone"]


def test_ls_says_how_far_an_unfinished_generation_is(image_list, tmp_path, monkeypatch):
    def stop_after_two(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(original(*arguments))
        return made[-1]

    made, original = [], refresh.cluster_group
    monkeypatch.setattr(refresh, "cluster_group", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        make_kmeans(image_list, tmp_path / "run/masks/epoch_0002")
    (row,) = rows(tmp_path / "run")
    assert row["name"] == "epoch_0002"
    assert row["state"] == "unfinished: 2 of 3 parts"
    assert row["source"] == "kmeans"
    checked = call("verify", tmp_path / "run/masks/epoch_0002.partial")
    assert checked.exit_code == 1
    told = "is unfinished (2 of 3 parts); the command that was making it, run again, finishes it"
    assert told in checked.stdout
    with pytest.raises(MaskError, match=re.escape(told)):
        MaskStore(tmp_path / "run/masks/epoch_0002.partial", images_id(image_list))


def test_ls_of_parts_from_before_their_number_was_kept(tmp_path):
    (tmp_path / "masks/epoch_0002.partial").mkdir(parents=True)
    assert rows(tmp_path)[0]["state"] == "unfinished: 0 of ? parts"


def test_ls_names_a_damaged_store_beside_the_others(store):
    broken = store.with_name("epoch_0003")
    shutil.copytree(store, broken)
    (broken / "labels.bin").write_bytes(b"")
    whole, damaged = rows(store.parent)
    assert whole["state"] == "complete"
    assert damaged["state"].startswith("damaged: ")


def test_ls_passes_over_what_a_kill_left(store):
    scratch = store.with_name(".epoch_0002.4711-0123abcd.tmp")
    shutil.copytree(store, scratch)
    (scratch / "manifest.json").unlink()
    assert [row["name"] for row in rows(store.parent)] == ["epoch_0001"]


@pytest.mark.parametrize("key", ["images_id", "num_images", "bytes"])
def test_ls_names_what_a_manifest_lacks(store, key):
    change_manifest(store, **{key: None})
    assert f"lacks {key}. Copy it anew" in rows(store.parent)[0]["state"]


UNUSABLE = [
    ({"sha256": 5}, "sha256 should be a text, not 5"),
    ({"layers": "layer3"}, "layers should be a list of names, not layer3"),
    ({"layers": [3]}, "layers should be a list of names, not [3]"),
    ({"num_images": "10"}, "num_images should be a whole number, not 10"),
    ({"rule": "x"}, "rule should be a table, not x"),
    ({"max_clusters": 8}, "has max_clusters but lacks min_clusters"),
]


@pytest.mark.parametrize(("values", "told"), UNUSABLE)
def test_what_a_manifest_cannot_hold_is_named(store, values, told):
    change_manifest(store, **values)
    (row,) = rows(store.parent)
    assert f"{store / 'manifest.json'}" in row["state"] and told in row["state"]
    checked = call("verify", store)
    assert checked.exit_code == 1 and told in checked.stdout


@pytest.mark.parametrize("key", ["sha256", "layers", "rule"])
def test_null_in_a_manifest_is_named(store, key):
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {key: None}))
    assert f"{key} should be " in call("verify", store).stdout
    assert f"{key} should be " in rows(store.parent)[0]["state"]


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("manifest.json", "{", "is not valid JSON"),
        ("manifest.json", "[]", "holds no JSON object but []"),
        ("manifest.json", '{"layers": [3]}', "layers should be a list of names"),
        ("parts.json", "[]", "holds no JSON object but []"),
        ("parts.json", '{"num_parts": "x"}', "num_parts should be a whole number, not x"),
    ],
)
def test_ls_names_broken_parts_beside_the_others(store, file, text, told):
    partial = store.with_name("epoch_0003.partial")
    partial.mkdir()
    (partial / file).write_text(text)
    whole, damaged = rows(store.parent)
    assert whole["state"] == "complete"
    assert damaged["name"] == "epoch_0003" and told in damaged["state"]
    assert str(partial / file) in damaged["state"]


def test_ls_inside_a_store_names_it(store, monkeypatch):
    outside = rows(store)
    monkeypatch.chdir(store)
    assert rows(Path(".")) == outside
    partial = store.with_name("epoch_0003.partial")
    partial.mkdir()
    monkeypatch.chdir(partial)
    assert rows(Path("."))[0]["name"] == "epoch_0003"


def test_ls_says_where_masks_lay_that_are_gone(store, tmp_path):
    store.rename(tmp_path / "elsewhere")
    store.symlink_to(tmp_path / "moved")
    told = f"{store} is a broken link to {tmp_path / 'moved'}"
    assert rows(store.parents[1])[0]["state"] == f"damaged: {told}"
    for command in ("ls", "verify"):
        made = call(command, store)
        assert made.exit_code == 1 and told in made.output


def test_ls_of_a_folder_without_masks_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        made = call("ls", path)
        assert made.exit_code == 1
        assert str(path) in made.output


def test_a_whole_store_passes_with_and_without_its_images(store, image_dir):
    for options in ([], ["--images", image_dir]):
        made = call("verify", store, *options)
        assert made.exit_code == 0, made.stdout
        assert "is whole (sha256 " in made.stdout


def test_a_store_from_before_the_hash_is_valid_and_says_so(store, image_dir):
    change_manifest(store, sha256=None)
    made = call("verify", store, "--images", image_dir)
    assert made.exit_code == 0
    assert "no hash" in made.stdout


def test_bootstrapped_masks_pass(image_list, image_dir, tmp_path):
    made = call("verify", make_kmeans(image_list, tmp_path / "m"), "--images", image_dir)
    assert made.exit_code == 0, made.stdout


def _cut_short(store):
    (store / "labels.bin").write_bytes((store / "labels.bin").read_bytes()[:-7])


def _index_cut_short(store):
    (store / "index.npy").write_bytes((store / "index.npy").read_bytes()[:-7])


def _no_labels(store):
    (store / "labels.bin").unlink()


def _last_map_counted_larger(store):
    change_index(store, "h", 9, 9)
    change_index(store, "height", 9, 72)


def _one_label_changed(store):
    labels = bytearray((store / "labels.bin").read_bytes())
    labels[40] = labels[40] ^ 1
    (store / "labels.bin").write_bytes(bytes(labels))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_cut_short, "labels.bin has"),
        (_index_cut_short, "index.npy cannot be read"),
        (_no_labels, "labels.bin has 0 bytes"),
        (_last_map_counted_larger, "index.npy counts"),
        (_one_label_changed, "the content's hash is"),
        (lambda s: change_index(s, "offset", 3, 5), "image number 3: its map starts at byte 5"),
        (lambda s: change_index(s, "h", 4, 1), "image number 4: its map is 1x"),
        (lambda s: change_index(s, "clusters", 2, 9), "image number 2: label 24 where only 9"),
        (lambda s: change_manifest(s, num_images=9), "has 10 images, the manifest says 9"),
        (lambda s: change_manifest(s, source=None), "lacks source"),
        (lambda s: change_manifest(s, source="kmeans"), "lacks backbone, layers"),
        (lambda s: change_manifest(s, version=99), "not of format"),
        (lambda s: change_manifest(s, complete=False), "incomplete"),
        (lambda s: (s / "manifest.json").unlink(), "no manifest.json"),
        (lambda s: (s / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda s: (s / "manifest.json").write_text("[]"), "holds no JSON object but []"),
        (lambda s: change_manifest(s, images_id=None), "lacks images_id"),
    ],
)
def test_damage_is_named_in_a_line_with_the_way_out(store, damage, told):
    damage(store)
    made = call("verify", store)
    assert made.exit_code == 1
    lines = made.stdout.splitlines()
    assert any(told in line for line in lines), lines
    ways_out = ("copy it anew", "delete it and run", "was it cut short", "start a new run folder")
    assert all(any(way in line.lower() for way in ways_out) for line in lines), lines


def test_an_image_list_that_changed_is_named(store, image_dir):
    (image_dir / "image_99.png").write_bytes((image_dir / "image_00.png").read_bytes())
    made = call("verify", store, "--images", image_dir)
    assert made.exit_code == 1
    (line,) = made.stdout.splitlines()
    assert "of 10 images" in line and "of 11: images were added, removed or changed" in line


def test_an_image_of_another_size_is_named(store, image_dir):
    Image.new("RGB", (33, 20)).save(image_dir / "image_04.png")
    made = call("verify", store, "--images", image_dir)
    assert made.exit_code == 1
    assert "image_04.png: is 20x33 pixels, its masks were made for 48x52" in made.stdout


def test_an_image_that_can_no_longer_be_read_is_named(store, image_dir):
    (image_dir / "image_05.png").write_bytes(b"no picture")
    made = call("verify", store, "--images", image_dir)
    assert made.exit_code == 1
    assert "image_05.png" in made.stdout and "Traceback" not in made.stdout


def test_images_of_one_cell_are_whole(tmp_path):
    (tmp_path / "dots").mkdir()
    for side in (1, 5, 8):
        Image.new("RGB", (side, side), (side, 0, 0)).save(tmp_path / f"dots/{side}.png")
    dots = images(tmp_path / "dots", DataRoots(tmp_path))
    for make in (make_grid, make_kmeans):
        folder = make(dots, tmp_path / make.__name__)
        made = call("verify", folder, "--images", tmp_path / "dots")
        assert made.exit_code == 0, made.stdout
        assert MaskStore(folder, images_id(dots)).read(0).shape == (1, 1)


def test_of_many_bad_images_the_first_are_named_and_the_others_counted(tmp_path):
    entries = [MaskEntry(np.full((1, 1), 7, np.uint8), 8, 8, 3, 0)] * 50
    write_store(tmp_path / "m", entries, {"images_id": "abc", "source": "grid"})
    lines = call("verify", tmp_path / "m").stdout.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more images like the last one"


def test_images_that_are_not_there_are_one_line(store, tmp_path):
    made = call("verify", store, "--images", tmp_path / "nowhere")
    assert made.exit_code == 1
    assert "no such folder" in made.output


def test_quality_of_a_manifest_without_a_source_is_one_line(tmp_path):
    roots = write_coco(tmp_path / "coco")
    store = make_grid(images(SPEC, roots), tmp_path / "run/masks/epoch_0001")
    change_manifest(store, source=None)
    made = call("quality", store, "--data", roots.root, "--spec", SPEC)
    assert made.exit_code == 1 and isinstance(made.exception, SystemExit)
    assert f"{store / 'manifest.json'} lacks source. Copy it anew" in made.output


def test_quality_of_images_without_annotations_is_one_line(store, tmp_path):
    made = call("quality", store, "--data", tmp_path, "--spec", "coco2017/val")
    assert made.exit_code == 1
    assert "coco2017" in made.output
