"""What masks are clustered from: the trunk's own features, whatever makes them fast."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain.masks.features import CellFeatures, folded
from pretrain.photometry import normalise
from sslbench.resnet import LAYERS, ResNet
from sslbench.rng import seeded

SIZES = ((40, 56), (33, 64), (40, 56), (8, 8))


@pytest.fixture(params=[18, 50])
def backbone(request) -> ResNet:
    """A trunk whose BatchNorms all do something, as after training."""
    generator = torch.Generator().manual_seed(0)
    with seeded(0, "test"):
        trunk = ResNet(request.param, 0.125)
    for norm in trunk.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low in ((norm.weight, 0.5), (norm.running_var, 0.5)):
                values.data.uniform_(low, 1.5, generator=generator)
            for values in (norm.bias, norm.running_mean):
                values.data.uniform_(-0.5, 0.5, generator=generator)
    return trunk


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (*s, 3), generator=generator, dtype=torch.uint8) for s in SIZES]


def plain_map(backbone, picture, layer):
    images = normalise(picture.permute(2, 0, 1)[None].double() / 255)
    with torch.no_grad():
        return backbone.double().eval().maps(images, [layer])[layer]


def test_folding_batchnorm_into_convolutions_changes_no_map(backbone):
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2)).double()
    trunk = folded(backbone.double())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
    with torch.no_grad():
        expected, made = (t.eval().maps(images, LAYERS) for t in (backbone, trunk))
    for layer in LAYERS:
        assert torch.allclose(made[layer], expected[layer], rtol=1e-10, atol=1e-10)


def test_the_trunk_is_copied(backbone, pictures):
    backbone.train()
    features = CellFeatures(backbone, ("layer2.2",), "cosine", torch.float32)
    before = features(pictures[:1])[0]
    nn.init.zeros_(backbone.conv1.weight)
    assert backbone.training and torch.equal(features(pictures[:1])[0], before)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_every_image_has_its_own_cells_in_rows_whatever_its_size(backbone, pictures, metric):
    layer = "layer2.2" if backbone.depth == 50 else "layer2.1"
    made = CellFeatures(backbone, ("layer2.2",), metric, torch.float32)(pictures)
    for points, picture in zip(made, pictures, strict=True):
        expected = plain_map(backbone, picture, layer)[0].flatten(1).T
        if metric == "cosine":
            expected = F.normalize(expected, dim=1)
        assert torch.allclose(points.double(), expected, atol=1e-4 * expected.abs().max().item())


def test_images_of_one_size_may_go_together(backbone, pictures):
    """As on a GPU."""
    features = CellFeatures(backbone, ("layer2.2",), "cosine", torch.float32)
    assert features._batches(SIZES) == [[0, 2], [1], [3]]
    for one, together in zip(features(pictures), features._in_batches(pictures), strict=True):
        assert torch.allclose(one, together, atol=1e-5)


def test_the_number_of_threads_changes_no_bit():
    """Torch alone would give another sum of a convolution's products with each number."""
    with seeded(0, "test"):
        features = CellFeatures(ResNet(50), ("layer2.2",), "cosine", torch.float32)
    generator = torch.Generator().manual_seed(1)
    pictures = [
        torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        for size in ((96, 128, 3), (120, 88, 3), (96, 128, 3))
    ]
    threads, made = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            made.append(torch.cat(features(pictures)))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_each_of_several_layers_has_the_same_weight(backbone, pictures):
    """Unit vectors of both on the stride-8 grid, joined and scaled to unit length again."""
    layers = ("layer2", "layer3")
    made = CellFeatures(backbone, layers, "cosine", torch.float32)(pictures[:1])[0].double()
    fine, coarse = (plain_map(backbone, pictures[0], layer) for layer in layers)
    coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
    joined = torch.cat([F.normalize(m[0].flatten(1).T, dim=1) for m in (fine, coarse)], dim=1)
    assert torch.allclose(made, joined / 2**0.5, atol=1e-4)


def test_bfloat16_changes_features_little_and_widens_them(backbone, pictures):
    exact, rounded = (
        torch.cat(CellFeatures(backbone, ("layer2.2",), "cosine", dtype)(pictures))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32
    assert (exact * rounded).sum(dim=1).mean() > 0.999
    assert not torch.equal(exact, rounded)
