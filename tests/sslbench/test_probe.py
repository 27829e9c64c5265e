"""The k-NN probe of a trunk: what it measures, what it refuses, and that it leaves no trace."""

from pathlib import Path

import pytest
import torch
from devkit import write_devkit

from sslbench.datasets import DataError, DataRoots, image_labels
from sslbench.features import CentreCrops, crop_features
from sslbench.knn import Vote, mean_average_precision
from sslbench.probe import KNNProbe, knn_of_checkpoint
from sslbench.resnet import ResNet

TRAIN, TEST = "voc2007/trainval", "voc2007/test"
VOTE = Vote(neighbours=5)


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    return DataRoots(write_devkit(tmp_path / "data"))


@pytest.fixture
def network() -> ResNet:
    torch.manual_seed(0)
    network = ResNet(18, 0.25).train()
    network(torch.randn(8, 3, 64, 64))
    return network


def load(roots: DataRoots, train: str = TRAIN, test: str = TEST, vote: Vote = VOTE) -> KNNProbe:
    return KNNProbe.load(train, test, roots, resize=40, crop=32, vote=vote)


def test_a_checkpoint_tells_colours_apart(roots, network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "trunk.pth")
    settings = {"resize": 40, "crop": 32, "vote": VOTE}
    found = knn_of_checkpoint(tmp_path / "trunk.pth", roots, TRAIN, TEST, **settings)
    assert 90 < found <= 100
    assert found == load(roots).measure(network)


def test_the_features_are_the_averaged_last_map_in_the_order_of_the_labels(
    roots, network, monkeypatch
):
    monkeypatch.setattr("sslbench.probe.BATCH", 7)  # 24 and 16 images: neither is a multiple
    sides = image_labels(TRAIN, roots), image_labels(TEST, roots)
    network.eval()
    features = [
        torch.cat([crop_features(network, crop[None], 1) for crop in CentreCrops(s.paths, 40, 32)])
        for s in sides
    ]
    labels = [torch.from_numpy(side.matrix) for side in sides]
    expected = mean_average_precision(features[0], labels[0], features[1], labels[1], VOTE)
    assert load(roots).measure(network) == pytest.approx(100 * expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_probe_leaves_mode_statistics_and_generators_alone(training, roots, network):
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    load(roots).measure(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert {module.training for module in network.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_more_neighbours_than_training_images_are_refused(roots):
    with pytest.raises(DataError, match="25 neighbours are asked of the 24 images of voc2007/tr"):
        load(roots, vote=Vote(neighbours=25))


def test_splits_that_share_no_class_are_refused(tmp_path):
    root = write_devkit(tmp_path / "data", num_train=6, num_test=1)
    (root / "VOCdevkit/VOC2007/ImageSets/Main/blue_test.txt").write_text("000006  0\n")
    with pytest.raises(DataError, match="no class is shown by an image of both"):
        load(DataRoots(root))


def test_a_data_set_without_image_labels_is_named(roots):
    with pytest.raises(DataError, match="coco2017/train has no image-level labels"):
        load(roots, train="coco2017/train")
