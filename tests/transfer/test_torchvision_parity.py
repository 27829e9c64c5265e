"""torchvision's own network stands against ours, at every width, and stops the silent mistakes."""

from pathlib import Path

import pytest
from checkpoints import WRONG_PIXELS, make_backbone

from sslbench.resnet import ResNet
from transfer import parity, torchvision_parity
from transfer.convert import metadata
from transfer.parity import GOAL, ParityError, check_parity
from transfer.weights import WeightsError, write_weights


def written(backbone, folder: Path, change=None, **extra) -> Path:
    arrays = {name: value.numpy().copy() for name, value in backbone.state.items()}
    if change is not None:
        change(arrays)
    write_weights(folder / "w.pth", arrays, metadata(backbone, "torchvision") | extra)
    return folder / "w.pth"


@pytest.mark.parametrize(
    ("depth", "width"), [(50, 0.125), (18, 0.25), (34, 0.125), (101, 0.125), (18, 1.0)]
)
def test_right_weights_reach_the_goal_at_every_width(depth, width, tmp_path: Path):
    backbone = make_backbone(tmp_path, depth, width)
    record = check_parity(backbone, written(backbone, tmp_path), "torchvision")
    assert record["reference"].startswith("torchvision ")
    assert list(record["levels"]) == ["res2", "res3", "res4", "res5"]
    assert all(level["relative"] <= GOAL for level in record["levels"].values())


def test_none_of_our_network_computes_the_reference(tmp_path: Path, monkeypatch):
    path, pictures = written(make_backbone(tmp_path), tmp_path), parity.write_pictures(tmp_path)
    monkeypatch.setattr(ResNet, "__init__", lambda *_: pytest.fail("our network was built"))
    _, maps = torchvision_parity.maps(path, pictures)
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (32, 48, 64),
        (64, 24, 32),
        (128, 12, 16),
        (256, 6, 8),
    ]


def swap_statistics(arrays):
    first, second = (f"layer2.1.bn{i}.running_mean" for i in (1, 2))
    arrays[first], arrays[second] = arrays[second], arrays[first]


@pytest.mark.parametrize(
    ("change", "extra"),
    [(swap_statistics, {}), *((None, wrong) for wrong in WRONG_PIXELS)],
)
def test_silent_mistakes_are_stopped(change, extra, tmp_path: Path):
    backbone = make_backbone(tmp_path)
    with pytest.raises(ParityError, match=r"the torchvision trunk in torchvision .* differs from"):
        check_parity(backbone, written(backbone, tmp_path, change, **extra), "torchvision")


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("layer3.2.bn1.bias"),
        lambda arrays: arrays.update(extra=arrays["bn1.bias"]),
        lambda arrays: arrays.update({"module.bn1.bias": arrays.pop("bn1.bias")}),
    ],
)
def test_every_name_must_find_its_place(change, tmp_path: Path):
    backbone = make_backbone(tmp_path)
    with pytest.raises(WeightsError, match="torchvision has no place for"):
        check_parity(backbone, written(backbone, tmp_path, change), "torchvision")
