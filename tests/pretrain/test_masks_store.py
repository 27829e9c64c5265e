"""The mask store: what goes in comes out, and what does not belong is refused."""

import json
import pickle

import numpy as np
import pytest

from pretrain.masks.sources import crop_labels, grid_labels, make_fixed_masks
from pretrain.masks.store import MaskEntry, MaskError, MaskStore, stored_size, write_store
from sslbench.datasets import DataError, DataRoots, images
from sslbench.log import RunLog

SIZES = [(48, 64), (41, 33), (3, 5)]


def _write(folder, **manifest):
    generator = np.random.default_rng(0)
    entries = [
        MaskEntry(generator.integers(0, 256, stored_size(*size), dtype=np.uint8), *size, 256, 0)
        for size in SIZES
    ]
    write_store(folder, entries, {"images_id": "abc", **manifest})
    return entries


def test_round_trip(tmp_path):
    entries = _write(tmp_path / "m", source="kmeans")
    store = MaskStore(tmp_path / "m", "abc")
    assert len(store) == 3
    for index, entry in enumerate(entries):
        assert np.array_equal(store.read(index), entry.labels_hw)
        assert store.image_size(index) == SIZES[index]
    assert store.manifest["source"] == "kmeans"


def test_labels_are_the_mapped_file_itself_and_cannot_be_written(tmp_path):
    _write(tmp_path / "m")
    labels_hw = MaskStore(tmp_path / "m", "abc").read(1)
    before = int(labels_hw[0, 0])
    with (tmp_path / "m/labels.bin").open("r+b") as file:
        file.seek(int(np.prod(stored_size(*SIZES[0]))))
        file.write(bytes([255 - before]))
    assert labels_hw[0, 0] == 255 - before
    with pytest.raises(ValueError, match="read-only"):
        labels_hw[0, 0] = 1


def test_a_pixel_map_of_a_photo_takes_five_kilobytes():
    assert np.prod(stored_size(480, 640)) == 4800


def test_a_worker_gets_a_store_that_reads_for_itself(tmp_path):
    entries = _write(tmp_path / "m")
    store = MaskStore(tmp_path / "m", "abc")
    store.read(0)
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 3000
    assert np.array_equal(copy.read(2), entries[2].labels_hw)


def test_masks_of_other_images_are_refused(tmp_path):
    _write(tmp_path / "m")
    with pytest.raises(MaskError, match="another image list"):
        MaskStore(tmp_path / "m", "other")


def test_a_store_cut_short_is_refused(tmp_path):
    _write(tmp_path / "m")
    labels = tmp_path / "m/labels.bin"
    labels.write_bytes(labels.read_bytes()[:-7])
    with pytest.raises(MaskError, match="damaged"):
        MaskStore(tmp_path / "m", "abc")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(MaskError, match="no manifest"):
        MaskStore(tmp_path, "abc")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(MaskError, match="not of format"):
        MaskStore(tmp_path, "abc")


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path):
    def broken():
        yield MaskEntry(np.zeros((1, 1), np.uint8), 8, 8, 1, 0)
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        write_store(tmp_path / "m", broken(), {"images_id": "abc"})
    assert list(tmp_path.iterdir()) == []


def test_fixed_sources():
    assert (crop_labels(100, 60) == 0).all()
    grid = grid_labels(80, 160)
    assert grid.shape == (10, 20)
    assert np.array_equal(np.unique(grid), np.arange(25))
    assert (grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]) == (0, 4, 20, 24)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (41, 33), (50, 92), (427, 640)])
def test_a_cell_of_the_grid_is_where_the_centre_of_its_share_of_the_image_lies(size):
    h, w = stored_size(*size)
    rows = [(2 * i + 1) * 5 // (2 * h) for i in range(h)]  # (i + 1/2) / h, in fifths
    columns = [(2 * i + 1) * 5 // (2 * w) for i in range(w)]
    assert grid_labels(*size).tolist() == [[5 * r + c for c in columns] for r in rows]


def test_an_image_of_one_cell_lies_in_the_middle_of_the_grid():
    assert grid_labels(1, 1).tolist() == [[12]]


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/broken.jpg").write_bytes(b"no picture")
    listed = images(tmp_path / "photos", DataRoots(tmp_path))
    with RunLog(tmp_path) as log, pytest.raises(DataError, match=r"image broken\.jpg"):
        make_fixed_masks("grid", listed, "id", tmp_path / "masks", log)
