"""The method as a whole: what a step computes, and what it leaves alone."""

import dataclasses

import pytest
import torch

from pretrain import data
from pretrain.config import ArchConfig, PretrainConfig
from pretrain.data import Batch, ViewSpec, make_loader, to_device
from pretrain.fusion import fuse
from pretrain.masks.sources import make_fixed_masks
from pretrain.methods import cyborgs as cyborgs_module
from pretrain.methods.base import Method
from pretrain.methods.cyborgs import RECIPES, build
from pretrain.schedule import EpochPlan
from sslbench.datasets import images_id
from sslbench.log import RunLog
from sslbench.resnet import ResNet

WARMUP = EpochPlan(refresh_masks=False, contrast=False, clustering_weight=1.0, clusters=(4, 4))
CONTRAST = EpochPlan(refresh_masks=False, contrast=True, clustering_weight=0.0, clusters=(2, 8))
BOTH = dataclasses.replace(CONTRAST, clustering_weight=0.1)


@pytest.fixture
def batch(image_list, tmp_path) -> Batch:
    with RunLog(tmp_path) as log:
        masks = make_fixed_masks("grid", image_list, images_id(image_list), tmp_path / "m", log)
    spec = ViewSpec(RECIPES, crop_size=32, num_uniforms=4)
    loader = make_loader(image_list, masks, spec, batch_size=4, seed=0, epoch=1)
    return to_device(next(iter(loader)), 3, torch.device("cpu"))


def _step(method, batch, plan):
    output = method(batch, plan)
    sum(output.terms.values()).backward()
    return output


def test_it_is_a_method(tiny):
    assert isinstance(build(tiny), Method)


def test_the_fused_map_has_3584_channels():
    maps = ResNet(50).eval().maps(torch.zeros(1, 3, 224, 224), ["layer2", "layer3", "layer4"])
    for mode in ("average", "bilinear"):
        assert fuse(maps, ["layer2", "layer3", "layer4"], 7, mode).shape == (1, 3584, 7, 7)


def test_average_fusion_averages_and_small_maps_grow():
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    coarse = torch.full((1, 2, 1, 1), 7.0)
    fused = fuse({"a": fine, "b": coarse}, ["b", "a"], 2, "average")
    assert fused[0, 2].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert (fused[0, :2] == 7).all()


def test_contrast_reaches_every_online_parameter_and_no_target_one(tiny, batch):
    method = build(tiny)
    output = _step(method, batch, CONTRAST)
    assert set(output.terms) == {"contrast"}
    assert all(p.grad is not None for p in method.online.parameters())
    assert all(p.grad is None for p in method.target.parameters())


def test_warmup_touches_nothing_behind_the_clustering_layer(tiny, batch):
    method = build(tiny)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    output = _step(method, batch, WARMUP)
    assert set(output.terms) == {"clustering"}
    reached = {name for name, p in method.named_parameters() if p.grad is not None}
    stages = {name.split(".")[2] for name in reached}
    assert stages == {"conv1", "bn1", "layer1", "layer2"}
    # Buffers too: BatchNorm behind the layer has seen nothing, online and target.
    after = method.state_dict()
    untouched = [n for n in before if "projector" in n or "predictor" in n or "layer4" in n]
    assert all(torch.equal(before[name], after[name]) for name in untouched)
    assert not torch.equal(
        before["target.backbone.bn1.running_mean"], after["target.backbone.bn1.running_mean"]
    )


def test_both_terms_are_named_and_weighted(tiny, batch):
    torch.manual_seed(0)
    method = build(tiny)
    light = method(batch, BOTH).terms["clustering"]
    heavy = build(tiny)(batch, dataclasses.replace(BOTH, clustering_weight=0.2)).terms["clustering"]
    assert heavy.item() == pytest.approx(2 * light.item(), rel=1e-5)


def test_online_and_target_pool_the_same_ids(tiny, batch, monkeypatch):
    seen = []
    original = cyborgs_module.pool

    def recording(features, cells, ids):
        seen.append(ids)
        return original(features, cells, ids)

    monkeypatch.setattr(cyborgs_module, "pool", recording)
    build(tiny)(batch, CONTRAST)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])


def test_the_same_step_draws_the_same_clusters_and_another_step_others(tiny, batch):
    method = build(tiny)
    drawn = [method._num_clusters(step, 0, (2, 256)) for step in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[1:])) > 1


def test_two_processes_give_the_clustering_loss_of_the_whole_batch(tiny, batch, monkeypatch):
    """Groups are fixed in the global batch, so that halves of it average to the whole."""
    maps = [torch.randn(4, 16, 4, 4) for _ in range(4)]
    method = build(tiny)
    whole, _ = method._clustering(batch, maps[:2], maps[2:], (2, 8))
    halves = []
    for rank in range(2):
        monkeypatch.setattr(cyborgs_module.dist, "rank", lambda rank=rank: rank)
        mine = slice(2 * rank, 2 * rank + 2)
        views = tuple(dataclasses.replace(v, geometry=v.geometry[mine]) for v in batch.views)
        part = dataclasses.replace(batch, views=views)
        cut = [m[mine] for m in maps]
        halves.append(method._clustering(part, cut[:2], cut[2:], (2, 8))[0])
    assert (sum(halves) / 2).item() == pytest.approx(whole.item(), rel=1e-6)


def test_the_target_starts_equal_and_follows(tiny):
    method = build(tiny)
    online, target = method.online.backbone.conv1.weight, method.target.backbone.conv1.weight
    assert torch.equal(online, target)
    with torch.no_grad():
        online += 1
    method.update_target(0.0)
    assert (online - target).mean().item() == pytest.approx(0.996, abs=1e-4)
    method.update_target(1.0)  # the rate has reached 1: nothing moves
    assert (online - target).mean().item() == pytest.approx(0.996, abs=1e-4)


def test_initial_weights_follow_the_seed_alone(tiny):
    torch.manual_seed(1)
    first = build(tiny).state_dict()
    torch.manual_seed(2)
    second = build(tiny).state_dict()
    other = build(tiny.model_copy(update={"seed": 5})).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["online.backbone.conv1.weight"], other["online.backbone.conv1.weight"]
    )


def test_layers_are_resolved_for_the_depth(tiny):
    assert build(tiny).clustering_layer == "layer2.1"
    deep = build(PretrainConfig(arch=ArchConfig(depth=50, width=0.125)))
    assert deep.clustering_layer == "layer2.2"


def test_no_tensor_of_batch_by_ids_by_pixels_is_made(monkeypatch):
    """The largest thing the vote makes is one count per (cell, id)."""
    from pretrain import pooling

    sizes = []
    original = torch.bincount
    monkeypatch.setattr(
        pooling.torch, "bincount", lambda *a, **k: sizes.append(k["minlength"]) or original(*a, **k)
    )
    pooling.majority_labels(torch.zeros(2, 224, 224, dtype=torch.uint8), 7)
    assert sizes == [2 * 49 * 256]


def test_data_module_is_rank_independent_by_default():
    assert data.dist.world_size() == 1
