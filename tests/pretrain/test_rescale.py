"""A shorter or longer run keeps the course: milestones in proportion, M where it is."""

import pytest

from pretrain.config import PretrainConfig
from sslbench.config import CONFIGS_DIR, ConfigError, build, load

PAPER = CONFIGS_DIR / "pretrain" / "cyborgs.toml"
DEMO = CONFIGS_DIR / "pretrain" / "demo.toml"


def milestones(cfg: PretrainConfig) -> tuple:
    schedule, method = cfg.schedule, cfg.method
    moving = (method.warmup_epochs, method.refresh_masks_every, schedule.lr_warmup_epochs)
    return (*moving, schedule.lr_drops, schedule.keep_epochs, method.clustering_every)


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (800, (5, 100, 10, (768, 784), (5, 25, 50, 100, 200, 500, 800), 5)),
        (200, (1, 25, 3, (192, 196), (1, 6, 13, 25, 50, 125, 200), 5)),
        (1600, (10, 200, 20, (1536, 1568), (10, 50, 100, 200, 400, 1000, 1600), 5)),
    ],
)
def test_milestones_move_in_proportion(epochs, expected):
    cfg = load(PretrainConfig, PAPER, [f"schedule.epochs={epochs}", "schedule.rescale=true"])
    assert cfg.schedule.epochs == epochs
    assert milestones(cfg) == expected


def test_a_file_says_for_how_many_epochs_its_milestones_are_written():
    cfg = load(PretrainConfig, DEMO)
    double = 2 * cfg.schedule.epochs
    longer = load(PretrainConfig, DEMO, [f"schedule.epochs={double}", "schedule.rescale=true"])
    assert longer.method.warmup_epochs == 2 * cfg.method.warmup_epochs
    assert longer.method.refresh_masks_every == 2 * cfg.method.refresh_masks_every
    assert longer.schedule.keep_epochs == tuple(2 * e for e in cfg.schedule.keep_epochs)


def test_what_never_happens_still_never_happens():
    method = {"warmup_epochs": 0, "refresh_masks_every": 0}
    schedule = {"epochs": 400, "rescale": True, "lr_warmup_epochs": 0}
    cfg = build(PretrainConfig, {"method": method, "schedule": schedule}, "test")
    assert milestones(cfg)[:3] == (0, 0, 0)


def test_a_rescaled_run_is_the_run_with_these_milestones_written_out():
    moved = load(PretrainConfig, PAPER, ["schedule.epochs=200", "schedule.rescale=true"])
    assert build(PretrainConfig, moved.model_dump(), "test") == moved


def test_nothing_moves_unasked():
    plain = build(PretrainConfig, {"schedule": {"milestones_of": 100}}, "test")
    assert plain == PretrainConfig()


@pytest.mark.parametrize("epochs", [2, 20, 25, 30])
def test_a_very_short_run_keeps_both_drops_before_its_end(epochs):
    table = {"method": {"clustering_every": 0}, "schedule": {"epochs": epochs, "rescale": True}}
    drops = build(PretrainConfig, table, "test").schedule.lr_drops
    assert len(drops) == 2 and all(0 < drop < epochs for drop in drops)


@pytest.mark.parametrize(
    "table",
    [
        {"schedule": 5},
        {"method": 5, "schedule": {"rescale": True}},
        {"method": {"warmup_epochs": "five"}, "schedule": {"rescale": True}},
        {"schedule": {"rescale": True, "keep_epochs": ["a"]}},
        {"schedule": {"milestones_of": "x"}},
    ],
)
def test_wrong_types_are_still_named_by_validation(table):
    with pytest.raises(ConfigError):
        build(PretrainConfig, table, "test")


@pytest.mark.parametrize(
    "schedule",
    [{"rescale": 1}, {"rescale": True, "milestones_of": 0.5}],
)
def test_nonsense_is_refused(schedule):
    with pytest.raises(ConfigError, match=r"schedule\.(rescale|milestones_of)"):
        build(PretrainConfig, {"schedule": schedule}, "test")
