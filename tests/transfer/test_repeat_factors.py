"""Repeat factors by hand, their rounding over epochs, and the stream of batches made of them."""

import math
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from detectors import run_detection, write_random_weights

from sslbench.datasets import DataRoots, Object, Record
from transfer.loader import TrainingBatches, index_stream
from transfer.repeat_factors import epoch_indices, repeat_factors, sampling_factors
from transfer.task import load_task

RARE = [[0, 1], [0], [0], [0, 2], [], [0], [0], [0], [0], [0]]  # of ten images


def record(number: int, *categories: int, crowd: bool = False) -> Record:
    objects = (Object(c, (0.0, 0.0, 5.0, 5.0), 25.0, crowd, False, None, 0) for c in categories)
    return Record(number, Path("x.jpg"), 8, 9, tuple(objects))


def test_an_image_is_repeated_as_its_rarest_category_asks():
    once = math.sqrt(0.9 / 0.9)  # category 0 is in nine of ten images
    rare = math.sqrt(0.9 / 0.1)
    wanted = [rare, once, once, rare, 1, once, once, once, once, once]
    assert repeat_factors(RARE, 0.9).tolist() == pytest.approx(wanted)
    assert repeat_factors(RARE, 0.9, root=False)[0] == pytest.approx(0.9 / 0.1)


def test_no_image_is_shown_less_than_once():
    assert repeat_factors(RARE, 0.001).tolist() == [1.0] * 10


def test_a_category_counts_once_in_an_image_and_crowds_count():
    recipe = load_task("lvis_v1_twin", ["set.DATALOADER.REPEAT_THRESHOLD=0.9"]).values()
    twice = [record(0, 1, 1), record(1, 0, crowd=True), *(record(n, 0) for n in range(2, 10))]
    assert sampling_factors(recipe, twice).tolist() == pytest.approx([3.0, *[1.0] * 9])


def test_other_samplers_have_no_factors():
    assert sampling_factors(load_task("coco_fpn_twin").values(), [record(0, 1)]) is None


def test_fractions_are_reached_on_average():
    factors = np.array([1.0, 1.25, 3.5, 2.0])
    shown = Counter(i for epoch in range(2000) for i in epoch_indices(factors, 0, epoch).tolist())
    assert [shown[i] / 2000 for i in range(4)] == pytest.approx(factors.tolist(), abs=0.05)
    assert shown[0] == 2000 and shown[3] == 4000


def test_an_epoch_is_a_function_of_seed_and_epoch():
    factors = np.full(50, 1.5)
    first = epoch_indices(factors, 0, 3)
    assert (first == epoch_indices(factors, 0, 3)).all()
    others = (epoch_indices(factors, 0, 4), epoch_indices(factors, 1, 3))
    assert all(len(first) != len(other) or (first != other).any() for other in others)


def test_factors_of_one_leave_the_order_as_it_is_without_them():
    plain, ones = index_stream(7, 2), index_stream(7, 2, np.ones(7))
    assert list(islice(plain, 30)) == list(islice(ones, 30))


def test_a_resumed_stream_with_repeats_goes_on_where_it_was():
    class Numbers:
        def train(self, record, draw):
            return record.image_id

        test = None

    records = [record(number, *categories) for number, categories in enumerate(RARE)]
    factors = repeat_factors(RARE, 0.9)
    batches = TrainingBatches(records, Numbers(), 3, 0, grouped=True, factors=factors)
    whole = list(batches(0, 40))
    assert whole[17:] == list(batches(17, 40))
    shown = Counter(number for batch in whole for number in batch)
    assert shown[0] > 2 * shown[1] and shown[3] > 2 * shown[1]


class Asked(Exception):
    """What the loader was asked for."""


def test_training_on_lvis_asks_the_loader_for_repeats(
    scenes: DataRoots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def ask(records, *args, factors=None, **options):
        raise Asked(len(records), factors)

    monkeypatch.setattr("transfer.loader.TrainingBatches", ask)
    weights = write_random_weights(tmp_path / "w.pkl", "fpn")
    for name in ("lvis_v1_twin", "coco_fpn_twin"):
        task = load_task(name, ["engine=torchvision"]).resolved()
        with pytest.raises(Asked) as caught:
            run_detection(task, scenes, weights, tmp_path / name)
        num_images, factors = caught.value.args
        if name == "coco_fpn_twin":
            assert factors is None
        else:
            assert len(factors) == num_images and max(factors) > 1 == min(factors)
