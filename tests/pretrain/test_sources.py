"""Fixed masks: what each source makes, and that nobody can tell who made them."""

from dataclasses import replace

import numpy as np
import pytest
from skimage.segmentation import felzenszwalb

from pretrain.masks import sources
from pretrain.masks.cells import by_area, majority
from pretrain.masks.sources import felzenszwalb_labels, make_fixed_masks
from pretrain.masks.store import MaskError, MaskStore
from sslbench.datasets import DataError, DataRoots, images, images_id
from sslbench.log import RunLog


def make(source, image_list, folder, **options) -> MaskStore:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with RunLog(folder.parent) as log:
        return make_fixed_masks(source, image_list, images_id(image_list), folder, log, **options)


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Four blocks of the ten images."""
    monkeypatch.setattr(sources, "BLOCK", 3)


@pytest.mark.parametrize("source", ["crop", "grid", "felzenszwalb"])
def test_every_image_has_a_map(source, image_list, tmp_path):
    store = make(source, image_list, tmp_path / "masks")
    assert len(store) == 10
    assert store.manifest["source"] == source
    for index in range(10):
        assert store.read(index).max() + 1 == store.clusters(index)


def test_helping_processes_change_no_byte(image_list, tmp_path):
    make("felzenszwalb", image_list, tmp_path / "alone/masks")
    make("felzenszwalb", image_list, tmp_path / "helped/masks", num_workers=2)
    assert content(tmp_path / "alone/masks") == content(tmp_path / "helped/masks")


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_change_no_byte(world, image_list, tmp_path, in_turn):
    make("grid", image_list, tmp_path / "one/masks")
    in_turn(world, lambda: make("grid", image_list, tmp_path / "many/masks"))
    assert content(tmp_path / "one/masks") == content(tmp_path / "many/masks")


def test_an_interrupted_run_keeps_its_blocks_and_ends_with_the_same_bytes(
    image_list, tmp_path, monkeypatch
):
    make("grid", image_list, tmp_path / "whole/masks")
    seen, grid = [], sources.SOURCES["grid"]

    def until_the_eighth(picture):
        seen.append(picture.name)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return grid(picture)

    monkeypatch.setitem(sources.SOURCES, "grid", until_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        make("grid", image_list, tmp_path / "cut/masks")
    make("grid", image_list, tmp_path / "cut/masks")
    assert seen[8:] == list(image_list.names[6:])
    assert content(tmp_path / "cut/masks") == content(tmp_path / "whole/masks")


def test_a_damaged_image_is_named_without_a_helpers_traceback(image_dir, tmp_path):
    (image_dir / "image_99.png").write_bytes(b"no picture")
    listed = images(image_dir, DataRoots(image_dir))
    with pytest.raises(DataError, match=r"^image image_99\.png .*cannot be decoded") as told:
        make("felzenszwalb", listed, tmp_path / "masks", num_workers=2)
    assert "Traceback" not in str(told.value)


def test_masks_of_another_source_are_made_anew(image_list, tmp_path):
    make("grid", image_list, tmp_path / "masks")
    store = make("crop", image_list, tmp_path / "masks")
    assert store.manifest["source"] == "crop"
    assert store.read(0).max() == 0


def test_masks_of_other_images_are_refused(image_list, tmp_path):
    make("grid", image_list, tmp_path / "masks")
    with pytest.raises(MaskError, match="another image list"):
        make("grid", replace(image_list, names=image_list.names[:5]), tmp_path / "masks")


def test_finished_masks_are_not_made_again(image_list, tmp_path, monkeypatch):
    make("grid", image_list, tmp_path / "masks")
    monkeypatch.setitem(sources.SOURCES, "grid", lambda _: pytest.fail("made again"))
    make("grid", image_list, tmp_path / "masks")


def test_felzenszwalb_separates_areas_of_one_colour_and_numbers_them_by_size():
    image = np.zeros((80, 120, 3), np.uint8)
    image[:, 80:] = (250, 20, 20)
    labels = felzenszwalb_labels(image)
    assert (labels[:, :10] == 0).all()
    assert (labels[:, 10:] == 1).all()


def test_felzenszwalb_has_no_segment_below_a_thousand_pixels():
    image = np.zeros((80, 120, 3), np.uint8)
    image[24:48, 24:64] = 255  # 960 pixels
    assert (felzenszwalb_labels(image) == 0).all()


def test_felzenszwalb_has_detcons_scale_and_least_size():
    """Against scikit-image itself, on a picture where other settings find other segments."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (9, 12, 3)).repeat(20, axis=0).repeat(20, axis=1)
    image = (blocks // 3 + generator.integers(0, 60, blocks.shape)).astype(np.uint8)

    def found(scale, min_size):
        return by_area(majority(felzenszwalb(image, scale=scale, min_size=min_size)))

    made = felzenszwalb_labels(image)
    assert len(np.unique(made)) > 5
    assert np.array_equal(made, found(1000, 1000))
    for other in ((800, 1000), (1250, 1000), (1000, 800), (1000, 1250)):
        assert not np.array_equal(made, found(*other))
