"""The two name worlds, one name at a time and back again."""

import pytest

from sslbench.resnet import ResNet
from transfer.naming import NamingError, from_detectron2, to_detectron2

# Written out by hand: torchvision name, C4 name, FPN name.
KNOWN = [
    ("conv1.weight", "backbone.stem.conv1.weight", "backbone.bottom_up.stem.conv1.weight"),
    (
        "bn1.running_var",
        "backbone.stem.conv1.norm.running_var",
        "backbone.bottom_up.stem.conv1.norm.running_var",
    ),
    (
        "layer1.0.conv3.weight",
        "backbone.res2.0.conv3.weight",
        "backbone.bottom_up.res2.0.conv3.weight",
    ),
    (
        "layer3.22.bn1.bias",
        "backbone.res4.22.conv1.norm.bias",
        "backbone.bottom_up.res4.22.conv1.norm.bias",
    ),
    (
        "layer2.0.downsample.0.weight",
        "backbone.res3.0.shortcut.weight",
        "backbone.bottom_up.res3.0.shortcut.weight",
    ),
    (
        "layer4.0.downsample.1.running_mean",
        "roi_heads.res5.0.shortcut.norm.running_mean",
        "backbone.bottom_up.res5.0.shortcut.norm.running_mean",
    ),
    (
        "layer4.2.conv2.weight",
        "roi_heads.res5.2.conv2.weight",
        "backbone.bottom_up.res5.2.conv2.weight",
    ),
]


@pytest.mark.parametrize(("name", "c4", "fpn"), KNOWN)
def test_names_written_out_by_hand(name: str, c4: str, fpn: str):
    assert to_detectron2({name: 7}, "c4") == {c4: 7}
    assert to_detectron2({name: 7}, "fpn") == {fpn: 7}
    assert from_detectron2({c4: 7}, "c4") == {name: 7}
    assert from_detectron2({fpn: 7}, "fpn") == {name: 7}


@pytest.mark.parametrize("layout", ["c4", "fpn"])
@pytest.mark.parametrize("depth", [18, 50, 101])
def test_there_and_back_is_the_identity(depth: int, layout):
    state = ResNet(depth, 0.125).state_dict()
    names = {k: k for k in state if not k.endswith("num_batches_tracked")}
    there = to_detectron2(names, layout)
    assert len(there) == len(names)
    assert from_detectron2(there, layout) == names


@pytest.mark.parametrize(
    "name",
    [
        "fc.weight",
        "layer5.0.conv1.weight",
        "layer1.0.conv4.weight",
        "xconv1.weight",
        "conv1.bias",
        "bn1.num_batches_tracked",
        "layer1.0.downsample.2.weight",
        "encoder.conv1.weight",
    ],
)
def test_other_names_are_refused(name: str):
    with pytest.raises(NamingError, match="no torchvision name"):
        to_detectron2({name: 0}, "fpn")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("backbone.res5.0.conv1.weight", "c4"),
        ("backbone.bottom_up.res2.0.conv1.weight", "c4"),
        ("roi_heads.res5.0.conv1.weight", "fpn"),
        ("roi_heads.box_head.fc1.weight", "fpn"),
        ("stem.conv1.weight", "fpn"),
    ],
)
def test_names_outside_the_layout_are_refused(name: str, layout):
    with pytest.raises(NamingError):
        from_detectron2({name: 0}, layout)
