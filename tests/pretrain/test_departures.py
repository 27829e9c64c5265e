"""Departures from the paper: true for their config, and no more than a few words each."""

import pytest

from pretrain.config import PretrainConfig
from pretrain.departures import SETTINGS, departures_from_paper
from pretrain.stage import Pretrain
from sslbench.config import CONFIGS_DIR, apply_overrides, build, load


def departures(*overrides):
    table = {}
    apply_overrides(table, overrides)
    return set(departures_from_paper(build(PretrainConfig, table, "test")))


def added(*overrides):
    return departures(*overrides) - departures()


def test_the_default_departs_in_these_points_only():
    assert departures() == {
        "fusion average, not bilinear",
        "later K 2..256, not 8",
        "target prototypes for both views",
        "cells of two views paired by place",
        "one update for both losses",
        "groups of 8 in the clustering, not the batch",
    }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch_size=128", "batch 128, not 64"),
        ("optimizer.name='sgd'", "optimizer sgd, not lars"),
        ("arch.width=0.25", "width 0.25, not 1"),
        ("method.clustering_every=10", "M = 10, not 5"),
        ("method.contrast_layers=['layer4']", "contrast of layer4, not layer2+layer3+layer4"),
        ("method.masks.max_clusters=16", "K of masks 2..16, not 2..256"),
        ("method.masks.min_clusters=256", "K of masks 256, not 2..256"),
        ("init='x.pth'", "weights of a checkpoint to start from"),
    ],
)
def test_another_value_is_said_beside_the_papers(override, words):
    assert added(override) == {words}


def test_a_value_of_the_paper_is_no_departure():
    gone = departures() - departures("method.fusion='bilinear'")
    assert gone == {"fusion average, not bilinear"}


def test_a_loss_that_is_never_computed_departs_in_nothing_but_its_absence():
    found = departures("method.warmup_epochs=0", "method.clustering_every=0")
    assert found == {"fusion average, not bilinear", "W = 0, not 5", "M = 0, not 5"}


def test_what_the_paper_leaves_open_cannot_depart():
    assert not added("method.temperature=0.2", "schedule.lr_shape='cosine'", "schedule.lr_drops=[]")


def test_no_two_settings_begin_with_the_same_word():
    firsts = [setting.words.split()[0] for setting in SETTINGS]
    assert len(set(firsts)) == len(firsts)


def test_a_footnote_fits_a_line():
    cfg = load(PretrainConfig, CONFIGS_DIR / "pretrain" / "demo.toml")
    notes = Pretrain(cfg).footnotes()
    assert len(notes) > 10
    assert all(len(note) <= 100 for note in notes)


def test_the_literal_preset_departs_only_where_the_paper_names_no_scale_or_place():
    cfg = load(PretrainConfig, CONFIGS_DIR / "pretrain" / "paper_literal.toml")
    assert set(departures_from_paper(cfg)) == {
        "cells of two views paired by place",
        "groups of 8 in the clustering, not the batch",
    }


def test_the_released_codes_preset_says_where_it_leaves_the_paper():
    cfg = load(PretrainConfig, CONFIGS_DIR / "pretrain" / "official.toml")
    assert set(departures_from_paper(cfg)) == {
        "batch 128, not 64",
        "fusion average, not bilinear",
        "W = 0, not 5",
        "M = 0, not 5",
        "distance of masks euclidean, not cosine",
        "new masks at the end of an epoch, not start",
        "ids 81, not 256",
        "BatchNorm over slots, not rows",
        "last bias True, not False",
        "saturation added, not multiplied",
    }
