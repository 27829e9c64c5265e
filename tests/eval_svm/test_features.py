"""Features of a split: parts that survive a kill, whatever loads the pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval_svm import features
from eval_svm.features import extract, state_digest
from sslbench.features import CentreCrops, FeatureError
from sslbench.log import RunLog
from sslbench.resnet import ResNet


def pictures(folder: Path, number: int) -> list[Path]:
    generator = np.random.default_rng(0)
    paths = []
    for index in range(number):
        pixels = generator.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_a_continued_extraction_is_the_same_bits(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(features, "BATCHES_PER_PART", 1)
    torch.manual_seed(0)
    network = ResNet(18, 0.125).eval()
    paths = pictures(tmp_path, 7)
    settings = {"grid": 2, "batch_size": 3, "device": "cpu", "num_workers": 0}
    with RunLog(tmp_path) as log:
        crops = CentreCrops(paths, 40, 32)
        whole = extract(network, crops, tmp_path / "a", log=log, **settings)
        extract(network, crops, tmp_path / "b", log=log, **settings)
        parts = sorted((tmp_path / "b").iterdir())
        assert len(parts) == 3
        parts[1].unlink()
        again = extract(network, crops, tmp_path / "b", log=log, **settings)
    assert whole.shape == (7, 4 * network.channels("layer4"))
    assert np.array_equal(whole, again)


def test_workers_change_no_bit(tmp_path: Path):
    torch.manual_seed(0)
    network = ResNet(18, 0.125).eval()
    crops = CentreCrops(pictures(tmp_path, 5), 40, 32)
    settings = {"grid": 1, "batch_size": 2, "device": "cpu"}
    with RunLog(tmp_path) as log:
        alone = extract(network, crops, tmp_path / "a", num_workers=0, log=log, **settings)
        helped = extract(network, crops, tmp_path / "b", num_workers=1, log=log, **settings)
    assert np.array_equal(alone, helped)


def test_a_network_that_gives_nan_is_refused(tmp_path: Path):
    network = ResNet(18, 0.125).eval()
    network.layer4[1].bn2.weight.data[0] = float("nan")
    with RunLog(tmp_path) as log, pytest.raises(FeatureError, match="NaN or infinite"):
        extract(
            network,
            CentreCrops(pictures(tmp_path, 1), 40, 32),
            tmp_path / "a",
            grid=2,
            batch_size=2,
            device="cpu",
            num_workers=0,
            log=log,
        )


def test_the_digest_sees_one_changed_buffer():
    network = ResNet(18, 0.125)
    before = state_digest(network)
    assert state_digest(network) == before
    network.bn1.running_mean[0] += 1
    assert state_digest(network) != before
