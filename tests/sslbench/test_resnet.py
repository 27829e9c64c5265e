"""The trunk against torchvision, and its names, widths and early stop."""

import pytest
import torch
import torchvision

from sslbench.resnet import ResNet, resolve_layer


def filled(depth: int) -> torch.nn.Module:
    """A torchvision network whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(depth)
    network = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    network.fc = torch.nn.Identity()
    return network


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_every_map_equals_torchvision_bit_for_bit(depth: int, training: bool):
    theirs = filled(depth).train(training)
    ours = ResNet(depth).train(training)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)

    with torch.no_grad():
        maps = ours.maps(images, ["layer1", "layer2", "layer3", "layer4"])
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for name in maps:
            x = getattr(theirs, name)(x)
            assert torch.equal(maps[name], x), name
            assert maps[name].shape[1] == ours.channels(name)
            assert 64 // ours.strides[name] == maps[name].shape[2]
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, theirs.state_dict()[name]), name


def test_convolutions_start_as_he_normal_over_the_outputs():
    torch.manual_seed(0)
    trunk = ResNet(18)
    for module in (trunk.conv1, trunk.layer4[1].conv2, trunk.layer3[0].downsample[0]):
        fan_out = module.out_channels * module.kernel_size[0] ** 2
        assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert torch.equal(trunk.layer1[0].bn1.weight, torch.ones(64))


def test_a_block_is_the_map_in_the_middle_of_its_stage():
    trunk = ResNet(50, 0.125).eval()
    images = torch.randn(1, 3, 32, 32)
    maps = trunk.maps(images, ["layer2.2", "layer2", "layer2.3"])
    assert list(maps) == ["layer2.2", "layer2", "layer2.3"]
    assert torch.equal(maps["layer2"], maps["layer2.3"])
    assert torch.equal(maps["layer2"], trunk.layer2[3](maps["layer2.2"]))


def test_nothing_runs_beyond_the_deepest_map():
    trunk = ResNet(18, 0.25).train()
    trunk.maps(torch.randn(2, 3, 32, 32), ["layer2.0"])
    assert trunk.layer2[0].bn1.num_batches_tracked == 1
    assert trunk.layer2[1].bn1.num_batches_tracked == 0
    assert trunk.layer3[0].bn1.num_batches_tracked == 0


def test_width_scales_every_channel_count():
    thin = ResNet(50, 0.125)
    assert thin.conv1.out_channels == 8
    assert [thin.channels(f"layer{i}") for i in (1, 2, 3, 4)] == [32, 64, 128, 256]
    assert thin.channels("layer2.2") == 64
    full, names = ResNet(50).state_dict(), thin.state_dict()
    assert list(full) == list(names)


@pytest.mark.parametrize("width", [0.0, -1.0, 0.01, 1 / 3])
def test_a_width_that_leaves_no_whole_channels_is_refused(width: float):
    with pytest.raises(ValueError, match="width must be"):
        ResNet(50, width)


def test_a_block_that_a_depth_lacks_resolves_to_the_last_one():
    assert resolve_layer("layer2.2", 50) == "layer2.2"
    assert resolve_layer("layer2.2", 18) == "layer2.1"
    assert resolve_layer("layer3", 18) == "layer3"

    with pytest.raises(ValueError, match=r"nearest is 'layer2\.1'"):
        ResNet(18, 0.25).maps(torch.zeros(1, 3, 32, 32), ["layer2.2"])


@pytest.mark.parametrize(("layer", "depth"), [("layer2.9", 50), ("layer2.4", 18), ("layer3.6", 34)])
def test_a_block_that_neither_this_depth_nor_resnet50_has_is_refused(layer, depth):
    with pytest.raises(ValueError, match=r"does not exist: layer[23] of a ResNet-"):
        resolve_layer(layer, depth)


@pytest.mark.parametrize("name", ["res3", "layer5", "layer2.x", "conv1", ""])
def test_other_names_are_refused(name: str):
    with pytest.raises(ValueError, match=r"not of the form"):
        resolve_layer(name, 50)


def test_another_norm_can_be_used():
    trunk = ResNet(18, 0.25, norm=lambda channels: torch.nn.GroupNorm(4, channels))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in trunk.modules())
    assert trunk(torch.randn(1, 3, 32, 32)).shape == (1, 128, 1, 1)


def test_unknown_depth_is_refused():
    with pytest.raises(ValueError, match="depth 152 is unknown"):
        ResNet(152)
