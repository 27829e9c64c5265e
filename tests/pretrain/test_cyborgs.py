"""The method as a whole: what a step computes, and what it leaves alone."""

import dataclasses
import json

import pytest
import torch

from pretrain import data
from pretrain.config import ArchConfig, PretrainConfig
from pretrain.data import Batch, ViewSpec, make_loader, to_device
from pretrain.fusion import fuse
from pretrain.losses import clustering as losses
from pretrain.masks.sources import make_fixed_masks
from pretrain.methods import cyborgs as cyborgs_module
from pretrain.methods.base import Method
from pretrain.methods.cyborgs import RECIPES, build
from pretrain.plan import EpochPlan
from sslbench import config
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


def _forward(method, batch, plan):
    (part,) = batch.parts(1)
    return method(part, method.prepare([part], plan), plan)


def _step(method, batch, plan):
    output = _forward(method, batch, plan)
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
    light = _forward(method, batch, BOTH).terms["clustering"]
    doubled = dataclasses.replace(BOTH, clustering_weight=0.2)
    heavy = _forward(build(tiny), batch, doubled).terms["clustering"]
    assert heavy.item() == pytest.approx(2 * light.item(), rel=1e-5)


def _doubled(batch: Batch) -> Batch:
    views = (dataclasses.replace(v, images_B3SS=v.images_B3SS.double()) for v in batch.views)
    return dataclasses.replace(batch, views=tuple(views))


@pytest.mark.parametrize("correspondence", ["aligned", "nearest"])
@pytest.mark.parametrize("per_group", [2, 3])
@pytest.mark.parametrize("plan", [CONTRAST, WARMUP, BOTH], ids=["contrast", "warmup", "both"])
def test_accumulated_gradients_equal_the_whole_batchs(plan, per_group, correspondence, tiny, batch):
    """With BatchNorm frozen the parts of a step change nothing, even where a group spans them."""
    table = json.loads(tiny.model_dump_json())
    clustering = {"images_per_group": per_group, "correspondence": correspondence}
    table["method"]["clustering"] |= clustering
    cfg = config.build(PretrainConfig, table, where="test")

    def gradients(num_parts: int) -> dict[str, torch.Tensor]:
        method = build(cfg).double().eval()
        parts = _doubled(batch).parts(num_parts)
        prepared = method.prepare(parts, plan)
        for part in parts:
            sum(method(part, prepared, plan).terms.values()).backward()
        return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}

    whole, halves, quarters = gradients(1), gradients(2), gradients(4)
    assert whole.keys() == halves.keys() and len(whole) > 10
    for name, gradient in whole.items():
        assert torch.allclose(halves[name], gradient, rtol=1e-9, atol=1e-12), name
        assert torch.allclose(quarters[name], gradient, rtol=1e-9, atol=1e-12), name


def test_the_parts_of_a_batch_are_in_order_and_know_their_place(batch):
    parts = batch.parts(2)
    assert [part.images for part in parts] == [slice(0, 2), slice(2, 4)]
    assert torch.equal(torch.cat([part.indices_B for part in parts]), batch.indices_B)
    for index, view in enumerate(batch.views):
        pieces = [part.views[index] for part in parts]
        assert torch.equal(torch.cat([p.images_B3SS for p in pieces]), view.images_B3SS)
        assert torch.equal(torch.cat([p.geometry.box_B4 for p in pieces]), view.geometry.box_B4)


def test_bf16_runs_the_networks_only(tiny, batch, monkeypatch):
    """Maps, projections and losses leave in float32; the weights stay float32."""
    method = build(tiny.model_copy(update={"precision": "bf16"}))
    seen = []
    entering = {}
    for where, name in (
        (cyborgs_module, "pool"),
        (cyborgs_module, "detcon_loss"),
        (losses, "kmeans"),
    ):
        original = getattr(where, name)

        def watched(first, *rest, name=name, original=original):
            entering[name] = first.dtype
            return original(first, *rest)

        monkeypatch.setattr(where, name, watched)
    method.online.backbone.layer4[-1].register_forward_hook(lambda *a: seen.append(a[2].dtype))
    output = _step(method, batch, BOTH)
    assert seen[0] == torch.bfloat16
    assert {term.dtype for term in output.terms.values()} == {torch.float32}
    assert len(entering) == 3 and {*entering.values()} == {torch.float32}
    exact = _forward(build(tiny), batch, BOTH).terms
    for name, term in output.terms.items():
        assert term.item() == pytest.approx(exact[name].item(), rel=0.05)


def test_online_and_target_pool_the_same_ids(tiny, batch, monkeypatch):
    seen = []
    original = cyborgs_module.pool

    def recording(features, cells, ids):
        seen.append(ids)
        return original(features, cells, ids)

    monkeypatch.setattr(cyborgs_module, "pool", recording)
    _forward(build(tiny), batch, CONTRAST)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])


def test_the_same_step_draws_the_same_clusters_and_another_step_others(tiny, batch):
    method = build(tiny)
    drawn = [method.consistency.num_clusters(step, 0, (2, 256)) for step in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[1:])) > 1


def test_the_clustering_losss_k_reaches_both_ends_of_its_range(tiny):
    method = build(tiny)
    drawn = {method.consistency.num_clusters(step, 0, (2, 256)) for step in range(3000)}
    assert (min(drawn), max(drawn)) == (2, 256)


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


def test_ids_that_are_drawn_twice_count_once(tiny, batch):
    output = _forward(build(tiny), batch, CONTRAST)
    (part,) = batch.parts(1)
    masks = build(tiny).prepare([part], CONTRAST).masks
    counted = [len(ids.unique()) for mask in masks for ids in mask.ids_BR]
    assert output.monitors["distinct_ids"].item() == pytest.approx(sum(counted) / len(counted))


def test_clusterings_with_hardly_more_points_than_clusters_are_remarked(tiny):
    assert not build(PretrainConfig(arch=ArchConfig(width=0.125))).remarks()
    (remark,) = build(tiny.model_copy(update={"crop_size": 32})).remarks() or [""]
    # two images of 4x4 cells for up to 8 clusters
    assert "32 points into up to 8 clusters" in remark
    without = tiny.method.model_copy(update={"clustering_every": 0})
    assert not build(tiny.model_copy(update={"method": without})).remarks()


def test_euclidean_distance_has_no_share_of_a_collapsed_maps_cost(tiny, batch):
    table = json.loads(tiny.model_dump_json())
    table["method"]["clustering"]["distance"] = "euclidean"
    cfg = config.build(PretrainConfig, table, where="test")
    assert "clustering_relative" not in _forward(build(cfg), batch, BOTH).monitors
    assert "clustering_relative" in _forward(build(tiny), batch, BOTH).monitors
