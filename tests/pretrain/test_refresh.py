"""Bootstrapped masks: their range, their independence of who makes them, and their resume."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pretrain.masks import parts as parts_module
from pretrain.masks import refresh as refresh_module
from pretrain.masks.refresh import Bootstrap, image_groups, num_clusters, refresh
from pretrain.masks.store import stored_size
from pretrain.photometry import normalise
from sslbench.datasets import DataRoots, decode_rgb, images, images_id
from sslbench.log import RunLog
from sslbench.resnet import ResNet
from sslbench.rng import seeded

SETTINGS = Bootstrap(
    layers=("layer2.2",),
    min_clusters=2,
    max_clusters=6,
    images_per_clustering=3,
    iterations=4,
    seed=0,
    epoch=2,
)


@pytest.fixture
def backbone() -> ResNet:
    with seeded(0, "test"):
        return ResNet(18, 0.125)


def _refresh(backbone, image_list, folder, settings=SETTINGS):
    folder.parent.mkdir(parents=True, exist_ok=True)
    with RunLog(folder.parent) as log:
        return refresh(backbone, image_list, images_id(image_list), folder, settings, log)


def _bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_image_has_a_map_with_labels_below_k(backbone, image_list, tmp_path):
    store = _refresh(backbone, image_list, tmp_path / "run/epoch_0002")
    assert len(store) == 10
    for index in range(10):
        labels, (height, width) = store.read(index), store.image_size(index)
        assert labels.shape == stored_size(height, width)
        assert labels.max() < store.clusters(index) <= 6


def test_labels_are_nearest_prototypes_of_their_own_group(backbone, image_list, tmp_path):
    """Cells of one cluster are alike: closer to their cluster's mean than to any other's."""
    store = _refresh(backbone, image_list, tmp_path / "run/epoch_0002")
    members = image_groups(10, SETTINGS)[0]
    rows, labels = [], []
    for index in members.tolist():
        image = decode_rgb(image_list.read(index), image_list.name(index))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            features = backbone.eval().maps(normalise(pixels), ["layer2.1"])["layer2.1"][0]
        rows.append(F.normalize(features.flatten(1).T, dim=1, eps=1e-6))
        labels.append(torch.from_numpy(store.read(index).copy()).flatten().long())
    points, labels = torch.cat(rows), torch.cat(labels)
    used = labels.unique()
    means = F.normalize(torch.stack([points[labels == k].mean(0) for k in used]), dim=1)
    agree = used[(points @ means.T).argmax(1)] == labels
    assert agree.double().mean() > 0.8  # a few iterations: nearly converged


def test_the_network_is_left_as_it_was(backbone, image_list, tmp_path):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.train()
    _refresh(backbone, image_list, tmp_path / "run/epoch_0002")
    assert backbone.training
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_an_interrupted_refresh_continues_to_the_same_bytes(
    backbone, image_list, tmp_path, monkeypatch
):
    _refresh(backbone, image_list, tmp_path / "whole/epoch_0002")
    made = []

    def stop_after_two(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(original(*arguments))
        return made[-1]

    original = refresh_module.cluster_group
    monkeypatch.setattr(refresh_module, "cluster_group", stop_after_two)
    folder = tmp_path / "cut/epoch_0002"
    with pytest.raises(KeyboardInterrupt):
        _refresh(backbone, image_list, folder)
    assert not folder.exists()
    assert len(list(folder.with_name("epoch_0002.partial").glob("part_*.npz"))) == 2
    monkeypatch.setattr(refresh_module, "cluster_group", original)
    _refresh(backbone, image_list, folder)
    assert _bytes(folder) == _bytes(tmp_path / "whole/epoch_0002")
    assert not folder.with_name("epoch_0002.partial").exists()


def test_parts_of_another_network_are_thrown_away(backbone, image_list, tmp_path, monkeypatch):
    _refresh(backbone, image_list, tmp_path / "whole/epoch_0002")
    folder = tmp_path / "cut/epoch_0002"
    other = ResNet(18, 0.125)
    monkeypatch.setattr(parts_module, "write_store", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        _refresh(other, image_list, folder)
    monkeypatch.undo()
    _refresh(backbone, image_list, folder)
    assert _bytes(folder) == _bytes(tmp_path / "whole/epoch_0002")


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_makes_the_same_files(
    world, backbone, image_list, tmp_path, in_turn
):
    _refresh(backbone, image_list, tmp_path / "one/epoch_0002")
    folder = tmp_path / "many/epoch_0002"
    in_turn(world, lambda: _refresh(backbone, image_list, folder))
    assert _bytes(folder) == _bytes(tmp_path / "one/epoch_0002")


def test_a_finished_generation_is_not_made_again(backbone, image_list, tmp_path, monkeypatch):
    folder = tmp_path / "run/epoch_0002"
    _refresh(backbone, image_list, folder)
    monkeypatch.setattr(refresh_module, "cluster_group", lambda *_: pytest.fail("made again"))
    _refresh(backbone, image_list, folder)


def test_a_kill_while_the_parts_are_removed_leaves_none_of_them(
    backbone, image_list, tmp_path, monkeypatch
):
    folder = tmp_path / "run/epoch_0002"

    def killed(parts_dir):
        (parts_dir / "manifest.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        _refresh(backbone, image_list, folder)
    monkeypatch.undo()
    before = _bytes(folder)
    _refresh(backbone, image_list, folder)
    assert _bytes(folder) == before
    assert not folder.with_name("epoch_0002.partial").exists()


def test_k_reaches_both_ends_of_its_range():
    settings = dataclasses.replace(SETTINGS, min_clusters=2, max_clusters=256)
    drawn = {num_clusters(settings, group) for group in range(5000)}
    assert (min(drawn), max(drawn)) == (2, 256)


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 10, 48])
def test_groups_cover_all_images_and_none_is_alone(num_images):
    groups = image_groups(num_images, SETTINGS)
    assert sorted(np.concatenate(groups).tolist()) == list(range(num_images))
    assert min(len(group) for group in groups) >= min(2, num_images)


def test_several_layers_are_clustered_together(backbone, image_list, tmp_path):
    settings = dataclasses.replace(SETTINGS, layers=("layer2", "layer3"))
    store = _refresh(backbone, image_list, tmp_path / "run/epoch_0002", settings)
    assert store.manifest["layers"] == ["layer2", "layer3"]
    assert store.read(0).shape == stored_size(*store.image_size(0))


def test_refined_labels_are_another_generation_of_the_same_clusters(backbone, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "alike").mkdir()
    for number in range(3):  # cells differ in texture, hardly in colour
        pixels = generator.integers(118, 138, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"alike/{number}.png")
    alike = images(tmp_path / "alike", DataRoots(tmp_path))
    folder = tmp_path / "run/epoch_0002"
    plain = [_refresh(backbone, alike, folder).read(i).copy() for i in range(3)]
    store = _refresh(backbone, alike, folder, dataclasses.replace(SETTINGS, refine="crf"))
    assert store.manifest["refine"] == "crf"
    refined = [store.read(i).copy() for i in range(3)]
    assert any(not np.array_equal(a, b) for a, b in zip(plain, refined, strict=True))
    again = _refresh(backbone, alike, folder)
    assert all(np.array_equal(again.read(i), plain[i]) for i in range(3))


def test_a_generation_from_before_refinement_stays_valid(
    backbone, image_list, tmp_path, monkeypatch
):
    folder = tmp_path / "run/epoch_0002"
    _refresh(backbone, image_list, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["refine"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(refresh_module, "cluster_group", lambda *_: pytest.fail("made again"))
    _refresh(backbone, image_list, folder)
