"""Bootstrapped masks: their range, their independence of who makes them, and their resume."""

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.masks import parts as parts_module
from pretrain.masks import refresh as refresh_module
from pretrain.masks.crf import refine
from pretrain.masks.features import CellFeatures
from pretrain.masks.kmeans import KMeans
from pretrain.masks.refresh import (
    Bootstrap,
    cluster_group,
    image_groups,
    manifest_of,
    num_clusters,
    refresh,
)
from pretrain.masks.store import stored_size
from pretrain.photometry import normalise
from sslbench.datasets import DataError, DataRoots, ImageList, decode_rgb, images, images_id
from sslbench.log import RunLog
from sslbench.resnet import ResNet
from sslbench.rng import seeded, torch_generator

SETTINGS = Bootstrap(
    layers=("layer2.2",),
    min_clusters=2,
    max_clusters=6,
    images_per_clustering=3,
    seed=3,
    epoch=2,
    rule=KMeans(iterations=4),
)


@pytest.fixture
def backbone() -> ResNet:
    with seeded(0, "test"):
        return ResNet(18, 0.125)


def _refresh(backbone, image_list, folder, settings=SETTINGS, num_workers=0):
    folder.parent.mkdir(parents=True, exist_ok=True)
    id = images_id(image_list)
    with RunLog(folder.parent) as log:
        return refresh(backbone, image_list, id, folder, settings, log, num_workers)


def _bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_image_has_a_map_with_labels_below_k(backbone, image_list, tmp_path):
    store = _refresh(backbone, image_list, tmp_path / "run/epoch_0002")
    assert len(store) == 10
    for index in range(10):
        labels, (height, width) = store.read(index), store.image_size(index)
        assert labels.shape == stored_size(height, width)
        assert labels.max() < store.clusters(index) <= 6


class Slow(NamedTuple):
    """What Algorithm 1 finds for one group."""

    points: list[torch.Tensor]  # of each image
    centers: torch.Tensor
    labels: list[torch.Tensor]  # of each image, (h, w)


def slow_clusters(backbone, image_list, members, number) -> Slow:
    """Algorithm 1 for one group, by the plain trunk in float64 and k-means point by point."""
    rows, sizes = [], []
    for index in members.tolist():
        image = decode_rgb(image_list.read(index), image_list.name(index))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double() / 255
        with torch.no_grad():
            cells = backbone.double().eval().maps(normalise(pixels), ["layer2.1"])["layer2.1"][0]
        rows += [cell / max(cell.norm(), 1e-6) for cell in cells.flatten(1).T]
        sizes.append(cells.shape[1:])
    generator = torch_generator(SETTINGS.seed, "mask kmeans", SETTINGS.epoch, number)
    start = torch.randperm(len(rows), generator=generator)[: num_clusters(SETTINGS, number)]
    centers = [rows[i] for i in start]
    for _ in range(SETTINGS.rule.iterations):
        labels = [int(torch.stack([row @ c for c in centers]).argmax()) for row in rows]
        sums = [
            sum(row for row, k in zip(rows, labels, strict=True) if k == c)
            for c in range(len(centers))
        ]
        centers = [total / total.norm() for total in sums]
    labels = [int(torch.stack([row @ c for c in centers]).argmax()) for row in rows]
    numbers = [h * w for h, w in sizes]
    parts = zip(torch.tensor(labels).split(numbers), sizes, strict=True)
    points = list(torch.stack(rows).split(numbers))
    return Slow(points, torch.stack(centers), [part.view(size) for part, size in parts])


def test_labels_agree_with_a_slow_reference(backbone, image_list, tmp_path):
    store = _refresh(backbone, image_list, tmp_path / "run/epoch_0002")
    for number, members in enumerate(image_groups(10, SETTINGS)):
        expected = slow_clusters(backbone, image_list, members, number).labels
        for index, labels in zip(members.tolist(), expected, strict=True):
            assert torch.equal(torch.from_numpy(store.read(index).copy()).long(), labels)


def _patchwork(folder: Path) -> ImageList:
    """Three noisy pictures of patches of 2x2 cells, whose borders no cluster keeps to."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(3):
        patches = generator.integers(0, 200, (4, 4, 3)).repeat(16, axis=0).repeat(16, axis=1)
        pixels = (patches + generator.integers(0, 50, (64, 64, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return images(folder, DataRoots(folder))


def test_refined_labels_are_the_crfs_by_points_prototypes_and_colours(backbone, tmp_path):
    listed = _patchwork(tmp_path / "photos")
    settings = dataclasses.replace(SETTINGS, refine="crf")
    store = _refresh(backbone, listed, tmp_path / "run/epoch_0002", settings)
    (members,) = image_groups(3, SETTINGS)
    slow = slow_clusters(backbone, listed, members, 0)
    for place, index in enumerate(members.tolist()):
        image = decode_rgb(listed.read(index), listed.name(index))
        blocks = torch.from_numpy(image.copy()).double().unflatten(1, (8, 8)).unflatten(0, (8, 8))
        colours = blocks.mean((1, 3))
        points, labels = slow.points[place], slow.labels[place]

        def refined(centers, colours, points=points, labels=labels):
            return refine(points, centers, labels.flatten(), colours).view(8, 8)

        expected = refined(slow.centers, colours)
        assert torch.equal(torch.from_numpy(store.read(index).copy()).long(), expected)
        # each of the three has a part in it
        assert not torch.equal(expected, labels)
        assert not torch.equal(expected, refined(slow.centers, 0 * colours))
        assert not torch.equal(expected, refined(slow.centers.flip(0), colours))


def test_masks_in_bfloat16_are_those_of_features_in_bfloat16(backbone, tmp_path):
    listed = _patchwork(tmp_path / "photos")
    (members,) = image_groups(3, SETTINGS)
    names = [listed.name(index) for index in members]
    pixels = [torch.from_numpy(decode_rgb(listed.read(i), "x").copy()) for i in members]
    found = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        # so many that rounding moves a cell from one to another
        many = {"min_clusters": 60, "max_clusters": 60}
        settings = dataclasses.replace(SETTINGS, precision=precision, **many)
        store = _refresh(backbone, listed, tmp_path / "run/epoch_0002", settings)
        features = CellFeatures(backbone, SETTINGS.layers, "cosine", dtype)
        expected = cluster_group(features, pixels, names, 0, settings)
        found[precision] = [store.read(index).tolist() for index in members]
        assert found[precision] == [entry.labels_hw.tolist() for entry in expected]
    assert found["fp32"] != found["bf16"]


@pytest.mark.parametrize("changed", [{"epoch": 3}, {"seed": 4}], ids=["epoch", "seed"])
def test_another_epoch_or_seed_draws_other_groups_other_k_and_other_starts(changed, backbone):
    other = dataclasses.replace(SETTINGS, **changed)
    first, second = (np.concatenate(image_groups(10, s)).tolist() for s in (SETTINGS, other))
    assert first != second and sorted(first) == sorted(second)
    drawn = [[num_clusters(s, group) for group in range(20)] for s in (SETTINGS, other)]
    assert drawn[0] != drawn[1]
    pictures = [torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))]
    features, fixed = CellFeatures(backbone, SETTINGS.layers, "cosine", torch.float32), KMeans(1)
    six = [dataclasses.replace(s, min_clusters=6, rule=fixed) for s in (SETTINGS, other)]
    made = [cluster_group(features, pictures, ["x"], 0, s)[0].labels_hw.tolist() for s in six]
    assert made[0] != made[1]


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


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pretrain.masks import parts
from sslbench.datasets import DataRoots, images
from sslbench.resnet import ResNet
from sslbench.rng import seeded
from tests.pretrain.test_refresh import _refresh

save, phase = parts._save, sys.argv[4]
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def killed_after_two(path, part):
    save(path, part)
    if path.stem.endswith("1"):
        kill()
if phase == "between parts":
    parts._save = killed_after_two
else:
    parts.write_store = kill
with seeded(0, "test"):
    backbone = ResNet(18, 0.125)
_refresh(backbone, images(Path(sys.argv[2]), DataRoots(Path(sys.argv[2]))), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("phase", ["between parts", "before they are joined"])
def test_a_killed_refresh_continues_to_the_same_bytes(phase, backbone, image_dir, tmp_path):
    listed = images(image_dir, DataRoots(image_dir))
    _refresh(backbone, listed, tmp_path / "whole/epoch_0002")
    folder = tmp_path / "cut/epoch_0002"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED, root, image_dir, folder, phase]
    done = subprocess.run([str(word) for word in command], capture_output=True, cwd=root)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = len(list(folder.with_name("epoch_0002.partial").glob("part_*.npz")))
    assert kept == (2 if phase == "between parts" else 3) and not folder.exists()
    _refresh(backbone, listed, folder)
    assert _bytes(folder) == _bytes(tmp_path / "whole/epoch_0002")


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


def test_workers_that_decode_ahead_change_neither_files_nor_the_global_generator(
    backbone, image_list, tmp_path
):
    _refresh(backbone, image_list, tmp_path / "none/epoch_0002")
    before = torch.get_rng_state()
    _refresh(backbone, image_list, tmp_path / "two/epoch_0002", num_workers=2)
    assert _bytes(tmp_path / "two/epoch_0002") == _bytes(tmp_path / "none/epoch_0002")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_in_one_sentence(backbone, image_dir, tmp_path, num_workers):
    (image_dir / "image_04.png").write_bytes(b"no picture")
    listed = images(image_dir, DataRoots(image_dir))
    with pytest.raises(DataError, match=r"^[^\n]*image_04\.png[^\n]*$"):
        _refresh(backbone, listed, tmp_path / "run/epoch_0002", num_workers=num_workers)


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


def test_masks_of_every_point_are_told_as_before_there_was_a_choice(backbone):
    rule = manifest_of(backbone, "images", SETTINGS)["rule"]
    assert rule == {"iterations": 4, "metric": "cosine", "start": "random", "backend": "torch"}
    fewer = dataclasses.replace(SETTINGS, rule=KMeans(iterations=4, fit_every=4))
    assert manifest_of(backbone, "images", fewer)["rule"] == {**rule, "fit_every": 4}
