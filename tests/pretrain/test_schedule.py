"""Algorithm 3 as data."""

import pytest

from pretrain.config import CyborgsConfig, LARSConfig, ScheduleConfig
from pretrain.schedule import lr_at, mask_epoch, needs_calibration, plan_epoch, target_rate_at


def _epochs(cfg: CyborgsConfig, last: int, what) -> list[int]:
    return [epoch for epoch in range(1, last + 1) if what(plan_epoch(cfg, epoch))]


def test_the_papers_run():
    cfg = CyborgsConfig()
    assert _epochs(cfg, 800, lambda plan: plan.refresh_masks) == [6, *range(100, 801, 100)]
    assert _epochs(cfg, 800, lambda plan: not plan.contrast) == [1, 2, 3, 4, 5]
    both = _epochs(cfg, 800, lambda plan: plan.contrast and plan.clustering_weight > 0)
    assert both == list(range(10, 801, 5))


def test_warmup_clusters_with_weight_one_into_eight():
    plan = plan_epoch(CyborgsConfig(), 1)
    assert (plan.clustering_weight, plan.clusters) == (1.0, (8, 8))
    later = plan_epoch(CyborgsConfig(), 10)
    assert (later.clustering_weight, later.clusters) == (0.1, (2, 256))


def test_zero_means_never():
    cfg = CyborgsConfig(refresh_masks_every=0, clustering_every=0)
    assert _epochs(cfg, 300, lambda plan: plan.refresh_masks) == [6]
    assert _epochs(cfg, 300, lambda plan: plan.contrast and plan.clustering_weight > 0) == []


def test_a_multiple_of_n_within_the_warmup_refreshes_nothing():
    cfg = CyborgsConfig(warmup_epochs=5, refresh_masks_every=3)
    assert _epochs(cfg, 12, lambda plan: plan.refresh_masks) == [6, 9, 12]


@pytest.mark.parametrize(("epoch", "made"), [(5, None), (6, 6), (99, 6), (100, 100), (399, 300)])
def test_an_epoch_uses_the_newest_masks(epoch, made):
    assert mask_epoch(CyborgsConfig(), epoch) == made


def test_without_warmup_the_first_masks_need_calibrated_statistics():
    cfg = CyborgsConfig(warmup_epochs=0)
    assert plan_epoch(cfg, 1).refresh_masks
    assert needs_calibration(cfg, 1)
    assert not needs_calibration(CyborgsConfig(), 1)
    assert not needs_calibration(
        CyborgsConfig(warmup_epochs=0, refresh_masks_every=0, masks={"source": "grid"}), 1
    )


def test_cosine_starts_at_the_peak_and_ends_at_zero():
    schedule = ScheduleConfig(
        epochs=10, lr_shape="cosine", lr_warmup_epochs=2, lr_drops=(), keep_epochs=()
    )
    rates = [lr_at(LARSConfig(lr=1.0), schedule, 64, elapsed) for elapsed in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.01, 0.505, 1, 0.5, 0], abs=1e-9)


def test_a_constant_target_rate_stays():
    cfg = CyborgsConfig(target_schedule="constant")
    assert {target_rate_at(cfg, progress) for progress in (0.0, 0.5, 1.0)} == {0.996}
