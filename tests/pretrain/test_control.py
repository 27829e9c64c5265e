"""Masks of the network before it learned: the same as a run without warm-up makes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.checkpoint import save_untrained
from pretrain.config import PretrainConfig
from pretrain.control import untrained_masks
from pretrain.masks import refresh
from pretrain.methods.cyborgs import build as build_method
from pretrain.train import Place, Run
from sslbench.checkpoint import CheckpointError
from sslbench.config import build
from sslbench.log import RunLog
from tests.pretrain.conftest import TINY


def checkpoint_of(path: Path, **method) -> Path:
    """A checkpoint whose weights are others than its config begins with."""
    table = TINY | {"method": TINY["method"] | method}
    other = build_method(build(PretrainConfig, TINY | {"seed": 5}, "test")).online_backbone
    save_untrained(path, other, build(PretrainConfig, table, "test"))
    return path


def test_it_equals_the_first_masks_of_a_run_without_warm_up(image_list, tmp_path):
    table = TINY | {"method": TINY["method"] | {"warmup_epochs": 0}}
    (tmp_path / "run").mkdir()
    with RunLog(tmp_path / "run") as log:
        place = Place(tmp_path / "run", torch.device("cpu"))
        expected = Run(build(PretrainConfig, table, "test"), image_list, place, log).masks_for(1)
        path = checkpoint_of(tmp_path / "last.pt")
        found = untrained_masks(path, image_list, tmp_path / "control", log)
    assert found.manifest == expected.manifest
    assert all(np.array_equal(found.read(i), expected.read(i)) for i in range(len(image_list)))


def test_a_killed_control_goes_on_to_the_same_masks(image_list, tmp_path, monkeypatch):
    path, made = checkpoint_of(tmp_path / "last.pt"), []
    original = refresh.cluster_group

    def counted(features, pictures, names, group, settings):
        if made == [0]:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(group)
        return original(features, pictures, names, group, settings)

    monkeypatch.setattr(refresh, "cluster_group", counted)
    with RunLog(tmp_path) as log:
        with pytest.raises(KeyboardInterrupt):
            untrained_masks(path, image_list, tmp_path / "control", log)
        found = untrained_masks(path, image_list, tmp_path / "control", log)
        whole = untrained_masks(path, image_list, tmp_path / "whole", log)
    assert made == [0, "killed", 1, 2, 0, 1, 2]  # three groups of ten images
    assert all(np.array_equal(found.read(i), whole.read(i)) for i in range(len(image_list)))


def test_a_run_with_fixed_masks_has_one_too(image_list, tmp_path):
    fixed = {"warmup_epochs": 0, "refresh_masks_every": 0, "masks": {"source": "crop"}}
    path = checkpoint_of(tmp_path / "last.pt", **fixed)
    with RunLog(tmp_path) as log:
        found = untrained_masks(path, image_list, tmp_path / "control", log)
    assert found.manifest["source"] == "kmeans"


def test_a_checkpoint_without_a_config_is_refused(image_list, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "moco.pth")
    with RunLog(tmp_path) as log, pytest.raises(CheckpointError, match=r"moco\.pth is no"):
        untrained_masks(tmp_path / "moco.pth", image_list, tmp_path / "control", log)
