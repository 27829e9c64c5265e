"""Full disks, lost masks, second writers and settings at their ends: each has a defined outcome."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain import train as train_module
from pretrain.config import PretrainConfig
from pretrain.masks import parts, refresh
from pretrain.masks.ground_truth import Annotations
from pretrain.masks.kmeans import KMeans
from pretrain.masks.refresh import Bootstrap, image_groups
from pretrain.masks.sources import make_fixed_masks
from pretrain.masks.store import MaskEntry, MaskError, MaskStore, write_store
from pretrain.stage import Pretrain
from pretrain.train import Run
from sslbench.config import build
from sslbench.datasets import DataRoots, images, images_id
from sslbench.files import FileError
from sslbench.lock import LockedError, hold_lock
from sslbench.log import RunLog, read_metrics
from sslbench.resnet import ResNet
from sslbench.stage import run_standalone
from tests.pretrain.compare import assert_equal, masks
from tests.pretrain.runs import last_checkpoint, train, train_and_stop


def changed(cfg: PretrainConfig, **method) -> PretrainConfig:
    table = json.loads(cfg.model_dump_json())
    table["method"] |= method
    return build(PretrainConfig, table, where="test")


@pytest.fixture
def groups_made(monkeypatch) -> list[int]:
    """Numbers of the groups of images that are clustered from here on."""
    made, original = [], refresh.cluster_group

    def counted(features, pictures, names, group, settings):
        made.append(group)
        return original(features, pictures, names, group, settings)

    monkeypatch.setattr(refresh, "cluster_group", counted)
    return made


class _Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("where", ["masks_for", "take_step"])
def test_a_kill_before_or_after_a_bootstrap_makes_its_masks_once(
    where, tiny, image_list, tmp_path, groups_made, monkeypatch
):
    """The run stops at the start of epoch 4, whose masks are due: before them, or with them."""
    whole = train(tiny, image_list, tmp_path / "whole")
    assert groups_made == [0, 1, 2, 0, 1, 2]  # before epochs 2 and 4
    original = getattr(Run, where)

    def dies(self, *arguments):
        if self.step == 6:
            raise _Killed
        return original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(Run, where, dies)
        train(tiny, image_list, tmp_path / "cut")
    assert last_checkpoint(tmp_path / "cut")["step"] == 6
    assert_equal(train(tiny, image_list, tmp_path / "cut"), whole)
    assert groups_made[6:] == [0, 1, 2, 0, 1, 2]
    assert masks(tmp_path / "cut") == masks(tmp_path / "whole")


def test_a_disk_that_fills_while_masks_are_made_loses_none_of_them(
    tiny, image_list, tmp_path, groups_made, monkeypatch
):
    whole = train(tiny, image_list, tmp_path / "whole")
    groups_made.clear()
    write, written = np.savez, []

    def filling(file, **arrays):
        written.append(file.name)
        if len(written) == 5:  # the second part of the second generation
            file.write(b"as much as fits")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(parts.np, "savez", filling)
        with pytest.raises(FileError, match=r"no room to write .*part_000001\.npz .*continues"):
            train(tiny, image_list, tmp_path / "cut")
    assert last_checkpoint(tmp_path / "cut")["step"] == 6
    partial = tmp_path / "cut/masks/epoch_0004.partial"
    assert sorted(p.name for p in partial.iterdir()) == [
        "manifest.json",
        "part_000000.npz",
        "parts.json",
    ]
    assert_equal(train(tiny, image_list, tmp_path / "cut"), whole)
    assert groups_made == [0, 1, 2, 0, 1, 1, 2]  # the part that found no room once more
    assert masks(tmp_path / "cut") == masks(tmp_path / "whole")


def test_masks_that_are_gone_are_missed_by_name(tiny, image_list, tmp_path):
    """They cannot be made again: the network has moved on."""
    train_and_stop(tiny, image_list, tmp_path / "run", steps=5)  # epoch 3, by masks of epoch 2
    shutil.rmtree(tmp_path / "run/masks/epoch_0002")
    with pytest.raises(MaskError, match=r"no masks at .*epoch_0002.* or start a new run folder"):
        train(tiny, image_list, tmp_path / "run")


def test_an_unfinished_generation_is_no_store(tiny, image_list, tmp_path, monkeypatch):
    def dies(*_):
        raise _Killed

    monkeypatch.setattr(parts, "write_store", dies)
    with pytest.raises(_Killed):
        train(tiny, image_list, tmp_path / "run")
    with pytest.raises(MaskError, match=r"epoch_0002\.partial is unfinished \(3 of 3 parts\)"):
        MaskStore(tmp_path / "run/masks/epoch_0002.partial", images_id(image_list))


def test_a_second_run_in_a_folder_is_refused_and_writes_nothing(tiny, image_dir, tmp_path):
    cfg = tiny.model_copy(update={"images": str(image_dir)})
    (tmp_path / "run").mkdir()
    with hold_lock(tmp_path / "run"), pytest.raises(LockedError, match="is being worked on by pid"):
        run_standalone(Pretrain(cfg), inputs={}, data=DataRoots(image_dir), out=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_of_two_writers_of_a_store_the_first_wins_and_the_other_says_so(tmp_path):
    entry = MaskEntry(np.zeros((1, 1), np.uint8), 8, 8, clusters=1, group=0)

    def overtaken():
        yield entry
        write_store(tmp_path / "m", [entry], {"images_id": "first"})

    with pytest.raises(MaskError, match=r"another process made .*/m meanwhile"):
        write_store(tmp_path / "m", overtaken(), {"images_id": "second"})
    assert MaskStore(tmp_path / "m", "first").clusters(0) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("changes", "refreshed", "clustered"),
    [
        ({"warmup_epochs": 0}, [1, 2, 4], {3}),
        ({"refresh_masks_every": 0}, [2], {1, 3}),
        ({"refresh_masks_every": 3}, [2, 3], {1, 3}),  # 3 does not divide the 4 epochs
        ({"clustering_every": 0}, [2, 4], {1}),
        ({"warmup_epochs": 0, "refresh_masks_every": 0, "clustering_every": 0}, [1], set()),
    ],
    ids=["W=0", "N=0", "N=3", "M=0", "all 0"],
)
def test_periods_of_zero_and_periods_that_do_not_divide_the_epochs_train(
    changes, refreshed, clustered, tiny, image_list, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_module, "CALIBRATION_BATCHES", 2)
    train(changed(tiny, **changes), image_list, tmp_path / "run")
    made = sorted(path.name for path in (tmp_path / "run/masks").iterdir())
    assert made == [f"epoch_{epoch:04d}" for epoch in refreshed]
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert {row["epoch"] for row in rows if "clustering" in row} == clustered
    assert len(rows) == 8 and all(np.isfinite(row["loss"]) for row in rows)


def test_groups_of_one_image_are_all_of_one_image_and_train(tiny, image_list, tmp_path):
    masks_of = tiny.method.masks.model_dump() | {"images_per_clustering": 1}
    clustering = tiny.method.clustering.model_dump() | {"images_per_group": 1}
    cfg = changed(tiny, masks=masks_of, clustering=clustering)
    train(cfg, image_list, tmp_path / "run")
    store = MaskStore(tmp_path / "run/masks/epoch_0004", images_id(image_list))
    assert [store.group_of(index) for index in range(10)] == [[index] for index in range(10)]


SETTINGS = Bootstrap(("layer2.1",), 2, 6, 3, seed=0, epoch=1, rule=KMeans(3))


@pytest.mark.parametrize("num_images", [1, 2, 7])
def test_only_where_images_are_clustered_together_none_is_left_alone(num_images):
    alone = dataclasses.replace(SETTINGS, images_per_clustering=1)
    assert [len(group) for group in image_groups(num_images, alone)] == [1] * num_images


@pytest.mark.parametrize("clusters", [(2, 257), (0, 4), (9, 8)])
def test_a_k_that_a_byte_cannot_tell_is_refused_before_anything_is_made(clusters):
    low, high = clusters
    with pytest.raises(
        ValueError, match=rf"min_clusters {low} and max_clusters {high}: .*1\.\.256"
    ):
        dataclasses.replace(SETTINGS, min_clusters=low, max_clusters=high)


def test_labels_above_a_byte_are_never_stored(tmp_path):
    entry = MaskEntry(np.full((1, 1), 300), 8, 8, clusters=301, group=0)
    with pytest.raises(AssertionError, match="would wrap"):
        write_store(tmp_path / "m", [entry], {"images_id": "abc"})
    assert list(tmp_path.iterdir()) == []


ONE_CELL = [(8, 8), (1, 1), (3, 5)]


@pytest.fixture
def one_cell_each(tmp_path) -> DataRoots:
    """A COCO of pictures of a single cell; the first is covered by an object of category 7."""
    root, generator = tmp_path / "coco", np.random.default_rng(0)
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number, size in enumerate(ONE_CELL, start=1):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"train2017/{number:012d}.jpg")
    named = [
        {"id": n, "file_name": f"{n:012d}.jpg", "height": h, "width": w}
        for n, (h, w) in enumerate(ONE_CELL, start=1)
    ]
    outline = [[0, 0, 8, 0, 8, 8, 0, 8]]
    item = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": outline, "iscrowd": 0}
    payload = {
        "images": named,
        "annotations": [item | {"bbox": [0, 0, 8, 8], "area": 64}],
        "categories": [{"id": 7, "name": "table"}],
    }
    (root / "annotations/instances_train2017.json").write_text(json.dumps(payload))
    return DataRoots(root)


def labels_of(store: MaskStore) -> list[list[list[int]]]:
    return [store.read(index).tolist() for index in range(len(store))]


@pytest.mark.parametrize(
    ("source", "expected"),
    [("crop", 0), ("grid", None), ("felzenszwalb", 0), ("boxes", None), ("ground_truth", 1)],
)
def test_every_source_makes_masks_of_images_of_one_cell(source, expected, one_cell_each, tmp_path):
    if source == "boxes":
        pytest.importorskip("cv2.ximgproc")
    spec = "coco2017/train"
    listed = images(spec, one_cell_each)
    with RunLog(tmp_path) as log:
        store = make_fixed_masks(
            source,
            listed,
            images_id(listed),
            tmp_path / "epoch_0001",
            log,
            annotations=Annotations(spec, one_cell_each),
        )
    found = labels_of(store)
    assert [np.shape(labels) for labels in found] == [(1, 1)] * 3
    assert expected is None or found[0] == [[expected]]


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        dataclasses.replace(SETTINGS, images_per_clustering=1),
        dataclasses.replace(SETTINGS, layers=("layer2.1", "layer4")),
        dataclasses.replace(SETTINGS, refine="crf"),
        dataclasses.replace(SETTINGS, rule=KMeans(3, "euclidean", "kmeans++")),
    ],
    ids=["together", "alone", "two layers", "crf", "euclidean"],
)
def test_kmeans_makes_masks_of_images_of_one_cell(settings, one_cell_each, tmp_path):
    listed = images("coco2017/train", one_cell_each)
    folder = tmp_path / "epoch_0001"
    with RunLog(tmp_path) as log:
        store = refresh.refresh(ResNet(18, 0.125), listed, "id", folder, settings, log)
    for index, labels in enumerate(labels_of(store)):
        assert np.shape(labels) == (1, 1) and labels[0][0] < store.clusters(index)


def test_a_whole_run_trains_on_images_of_one_cell(tiny, tmp_path):
    folder = Path(tmp_path / "pictures")
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(5):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    train(tiny, images(folder, DataRoots(folder)), tmp_path / "run")
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert rows and all(np.isfinite(row["loss"]) for row in rows)
