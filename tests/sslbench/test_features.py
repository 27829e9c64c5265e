"""Features of a frozen trunk: geometry as torchvision's, pooling by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sslbench.features import centre_crop, pool


@pytest.mark.parametrize("size", [(120, 90), (90, 121), (64, 64), (333, 77)])
def test_the_crop_is_torchvisions(size):
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
    reference = transforms.CenterCrop(48)(transforms.Resize(56)(image))
    assert np.array_equal(np.asarray(centre_crop(image, 56, 48)), np.asarray(reference))


def test_windows_of_a_seven_by_seven_map_overlap():
    maps = torch.arange(49.0).view(1, 1, 7, 7)
    expected = [maps[0, 0, r : r + 4, c : c + 4].mean() for r in (0, 3) for c in (0, 3)]
    expected = torch.stack(expected) / torch.stack(expected).norm()
    assert torch.allclose(pool(maps, 2)[0], expected)


def test_features_are_channel_major_and_of_unit_length():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0] = 3.0
    maps[0, 1] = 4.0
    found = pool(maps, 2)
    assert found.shape == (1, 8)
    assert torch.allclose(found[0, :4], torch.full((4,), 3 / 10))
    assert found.norm().item() == pytest.approx(1)
