"""What a config accepts, and what it says to what it refuses."""

import pytest

from pretrain.config import AdamWConfig, LARSConfig, MaskConfig, MaskQualityConfig, PretrainConfig
from sslbench.config import CONFIGS_DIR, ConfigError, build, departures, load

FILES = sorted((CONFIGS_DIR / "pretrain").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_shipped_file_loads(path):
    load(PretrainConfig, path)


def test_the_paper_file_is_the_default():
    assert departures(load(PretrainConfig, CONFIGS_DIR / "pretrain/cyborgs.toml")) == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"batch_size": -4}, "batch_size"),
        ({"crop_size": 0}, "crop_size"),
        ({"crop_size": 100}, "no multiple of method.contrast_grid 7"),
        ({"arch": {"width": -1}}, "arch.width"),
        ({"arch": {"width": 0.3}}, "multiple of 1/64"),
        ({"method": {"masks": {"max_clusters": 257}}}, "method.masks.max_clusters"),
        ({"method": {"masks": {"min_clusters": 9, "max_clusters": 8}}}, "exceeds max_clusters"),
        ({"method": {"warmup_epoch": 3}}, "did you mean 'method.warmup_epochs'"),
        ({"method": {"contrast_layers": []}}, "contrast_layers"),
        ({"method": {"contrast_layers": ["res4"]}}, "contrast_layers"),
        ({"method": {"warmup_epochs": 800}}, "leaves no contrastive epoch"),
        ({"method": {"refresh_masks_every": 900}}, "beyond the last epoch"),
        (
            {"method": {"refresh_masks_every": 800, "refresh_masks_at": "end"}},
            "refresh_masks_every 800 lies beyond",
        ),
        (
            {"method": {"warmup_epochs": 700, "clustering_every": 600}},
            "clustering_every 600 lies beyond",
        ),
        ({"method": {"masks": {"source": "grid"}, "warmup_epochs": 5}}, "never changes"),
        ({"method": {"masks": {"source": "grid", "refine": "crf"}}}, "set refine='none'"),
        (
            {"method": {"masks": {"refine": "crf", "metric": "euclidean"}}},
            "weighs labels by cosine",
        ),
        ({"optimizer": {"lr": 0}}, "lr: Input should be greater than 0, got 0"),
        ({"optimizer": {"name": "adamw", "momentum": 0.9}}, "momentum"),
        ({"optimizer": {"name": "adam"}}, "adamw"),
        ({"schedule": {"epochs": 100}}, "keep_epochs"),
        ({"schedule": {"keep_epochs": [5], "epochs": 700}}, "lr_drops"),
        ({"schedule": {"lr_warmup_epochs": 800}}, "leaves nothing"),
    ],
    ids=str,
)
def test_nonsense_is_refused_with_its_key(table, message):
    with pytest.raises(ConfigError) as error:
        build(PretrainConfig, table, where="test")
    assert message in str(error.value)


def test_the_place_of_the_images_is_not_part_of_the_identity():
    assert departures(PretrainConfig(images="/somewhere/else")) == {}


def test_saving_more_often_is_not_part_of_the_identity():
    table = {"schedule": {"save_every_steps": 7}}
    assert departures(build(PretrainConfig, table, where="test")).get("schedule", {}) == {}


def test_the_gallery_is_not_part_of_the_identity():
    assert departures(MaskQualityConfig(gallery_images=0)) == {}


def test_an_optimizer_without_a_name_is_lars():
    made = build(PretrainConfig, {"optimizer": {"lr": 0.2}}, where="test")
    assert made.optimizer == LARSConfig(lr=0.2)
    assert departures(made) == {"optimizer": {"lr": 0.2}}


def test_adamw_differs_from_lars_even_with_the_same_values():
    made = build(PretrainConfig, {"optimizer": {"name": "adamw"}}, where="test")
    assert made.optimizer == AdamWConfig(weight_decay=1.5e-6)
    assert departures(made) == {"optimizer": {"name": "adamw"}}


def test_mask_defaults_are_the_papers():
    masks = MaskConfig()
    assert (masks.min_clusters, masks.max_clusters, masks.images_per_clustering) == (2, 256, 16)
    assert masks.layers == ("layer2.2",)
