"""The estimate before the first step: right in its arithmetic, and without a trace in the run."""

import copy

import pytest
import torch

from pretrain import estimate as estimate_module
from pretrain.estimate import Estimate, estimate, synthetic_batch
from pretrain.methods.cyborgs import build

CPU = torch.device("cpu")


def test_every_kind_of_epoch_counts_as_often_as_it_comes(tiny, monkeypatch):
    """One epoch of warm-up at 1 s a step, one with both losses at 7 s, two of contrast at 3 s."""

    def seconds(method, batch, plan):
        return {(False, 1.0): 1.0, (True, 0.0): 3.0, (True, 0.1): 7.0}[
            plan.contrast, plan.clustering_weight
        ]

    monkeypatch.setattr(estimate_module, "_seconds", seconds)
    halved = tiny.model_copy(update={"accumulate": 2})
    for cfg in (tiny, halved):
        found = estimate(build(cfg), cfg, steps_per_epoch=100, device=CPU)
        parts = cfg.accumulate
        assert found.hours * 3600 == pytest.approx(100 * parts * (1 + 7 + 2 * 3))
        assert found.device == "cpu"


def test_a_batch_too_large_for_the_trial_is_scaled_up(tiny, monkeypatch):
    monkeypatch.setattr(estimate_module, "CPU_PIXELS", 2 * tiny.crop_size**2)
    monkeypatch.setattr(estimate_module, "_seconds", lambda *_: 1.0)
    found = estimate(build(tiny), tiny, steps_per_epoch=1, device=CPU)
    assert found.hours * 3600 == pytest.approx(4 * 2)  # epochs x (4 images for 2)


def test_memory_grows_with_the_images_and_holds_the_weights(tiny):
    method = build(tiny)
    few, many = (
        estimate(method, tiny.model_copy(update={"batch_size": n}), 1, CPU).gib * 2**30
        for n in (4, 8)
    )
    trained = [p for p in method.parameters() if p.requires_grad]
    weights = sum(p.nbytes for p in method.parameters()) + sum(p.nbytes for p in trained)
    assert many - weights == pytest.approx(2 * (few - weights), rel=0.05)
    # At least the first convolution's output, of both views, in float32.
    stem = 2 * 4 * 8 * 16 * 16 * 4
    assert few - weights > stem


def test_it_really_steps(tiny):
    method = build(tiny)
    before = copy.deepcopy(method.state_dict())
    assert estimate(method, tiny, steps_per_epoch=1, device=CPU).hours > 0
    weights = [n for n, p in method.named_parameters() if p.requires_grad]
    assert all(torch.equal(before[name], method.state_dict()[name]) for name in weights)


def test_the_synthetic_batch_is_one_of_the_configs(tiny):
    batch = synthetic_batch(build(tiny).view_spec, 3, CPU)
    for view in batch.views:
        assert view.images_B3SS.shape == (3, 3, 32, 32)
        assert view.labels_BSS.shape == (3, 32, 32) and view.labels_BSS.dtype == torch.uint8
        assert view.uniforms_BR.shape == (3, tiny.method.masks_per_view)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(0.05, 1.04, "cpu"), "about 3.0 minutes of steps, 1.0 GiB of memory, besides"),
        (Estimate(26.5, 7.25, "cuda"), "about 26.5 hours of steps, 7.2 GiB of GPU memory, besides"),
    ],
)
def test_it_reads_as_a_person_would_say_it(found, text):
    assert str(found).startswith(text)
