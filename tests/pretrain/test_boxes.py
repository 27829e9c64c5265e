"""Selective-search boxes: which are kept, and what OpenCV must have."""

import json
import sys
from importlib.metadata import packages_distributions

import numpy as np
import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.masks import boxes as boxes_module
from pretrain.masks.boxes import box_labels, contrib, select
from pretrain.masks.store import MaskError
from pretrain.train import Place, Run
from sslbench.config import build
from sslbench.log import RunLog


def _boxes(*rows):
    return np.array(rows, np.int64).reshape(-1, 4)


def test_boxes_are_kept_from_the_largest_on_unless_a_larger_one_covers_them():
    large, alike, part, far = (0, 0, 90, 90), (0, 0, 80, 80), (10, 10, 50, 40), (100, 0, 140, 40)
    kept = select(_boxes(part, alike, far, large), min_side=20)
    assert kept.tolist() == [list(large), list(far), list(part)]


def test_small_and_elongated_boxes_are_left_out():
    assert len(select(_boxes((0, 0, 19, 40), (0, 0, 100, 30)), min_side=20)) == 0


def test_the_order_in_which_boxes_are_found_does_not_matter():
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 200, (300, 2))
    boxes = np.concatenate([corners, corners + generator.integers(20, 80, (300, 2))], axis=1)
    shuffled = generator.permutation(boxes)
    assert np.array_equal(select(boxes, 20), select(shuffled, 20))


def test_at_most_255_boxes_are_kept():
    corners = np.stack(np.meshgrid(np.arange(20), np.arange(20)), 2).reshape(-1, 2) * 30
    boxes = np.concatenate([corners, corners + 30], axis=1)
    assert len(select(boxes, 20)) == 255


def test_a_box_below_96_pixels_of_640_is_left_out(monkeypatch):
    found = _boxes((0, 0, 95, 200), (200, 100, 296, 300))
    monkeypatch.setattr(boxes_module, "_proposals", lambda _: found)
    labels = box_labels(np.zeros((480, 640, 3), np.uint8))
    assert labels[10, 5] == 0 and labels[20, 30] == 1


WAY_OUT = "install --force-reinstall --no-deps opencv-contrib-python-headless"


def test_without_the_contrib_modules_the_command_to_install_them_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MaskError, match=WAY_OUT):
        box_labels(np.zeros((40, 40, 3), np.uint8))


def test_a_run_that_lacks_them_ends_before_it_begins(tiny, image_list, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    table = json.loads(tiny.model_dump_json())
    table["method"] |= {"warmup_epochs": 0, "refresh_masks_every": 0}
    table["method"]["masks"]["source"] = "boxes"
    cfg = build(PretrainConfig, table, where="test")
    with RunLog(tmp_path) as log, pytest.raises(MaskError, match=WAY_OUT):
        Run(cfg, image_list, Place(tmp_path, torch.device("cpu")), log)
    assert (tmp_path / "log.txt").read_text() == ""


def test_opencv_came_with_its_contrib_modules():
    """One wheel of cv2 is installed, and no other lies over it."""
    assert hasattr(contrib(), "ximgproc")
    wheels = {name for name in packages_distributions()["cv2"] if name.startswith("opencv")}
    assert len(wheels) == 1


def _scene():
    image = np.full((160, 240, 3), 90, np.uint8)
    image[30:110, 40:120] = (220, 40, 30)
    image[50:130, 150:220] = (30, 60, 230)
    return np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape), 0, 255).astype(
        np.uint8
    )


def test_boxes_surround_what_stands_out():
    labels = box_labels(_scene())
    red, blue, corner = labels[8, 10], labels[11, 23], labels[19, 0]
    assert labels.dtype == np.uint8 and len({red, blue, corner}) == 3


def test_the_same_picture_has_the_same_boxes():
    first = box_labels(_scene())
    assert all(np.array_equal(box_labels(_scene()), first) for _ in range(3))


def test_proposals_are_opencvs_for_blue_green_red():
    cv2 = contrib()
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (8, 10, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)

    def searched(bgr_HW3):
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(bgr_HW3))
        search.switchToSelectiveSearchFast()
        return {(x, y, x + w, y + h) for x, y, w, h in search.process().tolist()}

    made = {tuple(box) for box in boxes_module._proposals(image).tolist()}
    assert made == searched(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert made != searched(image)
