"""The four presets, and that each of their knobs does what it says."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from pretrain import train as train_module
from pretrain.config import PretrainConfig
from pretrain.data import Batch, ViewSpec, make_loader, to_device
from pretrain.fusion import fuse
from pretrain.heads import MLPHead
from pretrain.losses import clustering as losses
from pretrain.losses.vmf import vmf_distance
from pretrain.masks.sources import make_fixed_masks
from pretrain.methods.cyborgs import RECIPES, Cyborgs, build
from pretrain.plan import EpochPlan
from pretrain.schedule import plan_epoch
from pretrain.train import Run
from sslbench.config import CONFIGS_DIR, departures, load
from sslbench.config import build as build_config
from sslbench.datasets import images_id
from sslbench.log import RunLog, read_metrics
from tests.pretrain.compare import assert_equal
from tests.pretrain.runs import train, train_and_stop

WARMUP = EpochPlan(refresh_masks=False, contrast=False, clustering_weight=1.0, clusters=(3, 3))
CONTRAST = EpochPlan(refresh_masks=False, contrast=True, clustering_weight=0.0, clusters=(3, 3))
BOTH = dataclasses.replace(CONTRAST, clustering_weight=0.1)


def preset(name: str) -> PretrainConfig:
    return load(PretrainConfig, CONFIGS_DIR / f"pretrain/{name}.toml")


def changed(cfg: PretrainConfig, **method) -> PretrainConfig:
    """The config with other keys of the method; nested tables are merged."""
    table = json.loads(cfg.model_dump_json())
    for key, value in method.items():
        here = table["method"]
        here[key] = here[key] | value if isinstance(value, dict) else value
    return build_config(PretrainConfig, table, where="test")


def batch_for(cfg: PretrainConfig, image_list, tmp_path) -> Batch:
    with RunLog(tmp_path) as log:
        masks = make_fixed_masks("grid", image_list, images_id(image_list), tmp_path / "m", log)
    spec = ViewSpec(RECIPES, cfg.crop_size, cfg.method.uniforms_per_view)
    loader = make_loader(image_list, masks, spec, batch_size=4, seed=0, epoch=1)
    return to_device(next(iter(loader)), 3, torch.device("cpu"))


def forward(method: Cyborgs, batch: Batch, plan: EpochPlan):
    (part,) = batch.parts(1)
    prepared = method.prepare([part], plan)
    return method(part, prepared, plan), prepared


def test_each_preset_departs_from_the_default_in_the_named_points_only():
    assert departures(preset("cyborgs")) == {}
    literal = departures(preset("paper_literal"))["method"]
    literal.pop("name", None)
    assert literal == {
        "fusion": "bilinear",
        "clustering": {
            "prototypes": "literal",
            "separate_step": True,
            "min_clusters": 8,
            "max_clusters": 8,
        },
    }
    never = {"warmup_epochs": 0, "clustering_every": 0}
    detcon = departures(preset("detcon"))
    assert detcon.keys() == {"method"} and detcon["method"].pop("name", "cyborgs") == "cyborgs"
    assert detcon["method"] == never | {
        "refresh_masks_every": 0,
        "contrast_layers": ["layer4"],
        "masks": {"source": "felzenszwalb"},
    }
    official = departures(preset("official"))
    assert official.pop("batch_size") == 128
    assert official.keys() == {"method"} and official["method"].pop("name", "cyborgs") == "cyborgs"
    assert official["method"] == never | {
        "refresh_masks_at": "end",
        "mask_ids": 81,
        "sampling": "released",
        "mlp_norm": "slots",
        "last_bias": True,
        "target_schedule": "constant",
        "masks": {"metric": "euclidean"},
        "views": {"interpolation": "bilinear", "saturation": "added"},
    }


def test_the_presets_of_other_methods_have_no_clustering_loss():
    for name in ("official", "detcon"):
        plans = [plan_epoch(preset(name).method, epoch) for epoch in range(1, 801)]
        assert all(plan.clustering_weight == 0 and plan.contrast for plan in plans)


def test_the_released_code_makes_masks_after_each_hundredth_epoch():
    cfg = preset("official").method
    made = [epoch for epoch in range(1, 801) if plan_epoch(cfg, epoch).refresh_masks]
    assert made == [1, *range(101, 800, 100)]


def test_only_the_literal_preset_makes_two_updates_of_a_step():
    literal, ours = preset("paper_literal").method, preset("cyborgs").method
    assert [len(plan_epoch(literal, epoch).updates) for epoch in (1, 6, 10)] == [1, 1, 2]
    assert [len(plan_epoch(ours, epoch).updates) for epoch in (1, 6, 10)] == [1, 1, 1]
    contrast, clustering = plan_epoch(literal, 10).updates
    assert contrast.contrast and contrast.clustering_weight == 0
    assert not clustering.contrast and clustering.clustering_weight == 0.1
    assert clustering.clusters == (8, 8)


@pytest.mark.parametrize("name", ["paper_literal", "official", "detcon"])
def test_every_preset_trains_and_resumes_bit_equal(name, tiny, image_list, tmp_path, monkeypatch):
    method = json.loads(preset(name).method.model_dump_json())
    small = json.loads(tiny.model_dump_json())["method"]
    sizes = ("contrast_grid", "masks_per_view", "hidden", "embedding")
    method |= {key: small[key] for key in sizes}
    method["masks"] |= {"max_clusters": 6, "images_per_clustering": 3, "iterations": 4}
    method["clustering"] |= {"max_clusters": 4, "min_clusters": 3, "images_per_group": 2}
    method |= {"refresh_masks_every": min(method["refresh_masks_every"], 2)}
    method |= {"clustering_every": min(method["clustering_every"], 2)}
    method |= {"warmup_epochs": min(method["warmup_epochs"], 1)}
    if name == "detcon":
        method["masks"]["source"] = "grid"  # as fixed as its own, and at once there
    cfg = changed(tiny, **method)
    whole = train(cfg, image_list, tmp_path / "whole")
    rows = read_metrics(tmp_path / "whole/metrics.jsonl")
    assert len(rows) == 8 and all(math.isfinite(row["loss"]) for row in rows)

    train_and_stop(cfg, image_list, tmp_path / "cut", steps=5)
    assert_equal(train(cfg, image_list, tmp_path / "cut"), whole)


# --- prototypes to the letter


@pytest.fixture
def literal(tiny) -> PretrainConfig:
    return changed(tiny, clustering={"prototypes": "literal"})


def test_literal_terms_follow_equation_3_and_only_the_online_view_has_a_gradient(
    literal, image_list, tmp_path
):
    """One group of four images: the four terms by hand, prototypes of y (online, view 1) and y'."""
    cfg = changed(literal, clustering={"images_per_group": 4})
    batch = batch_for(cfg, image_list, tmp_path)
    method = build(cfg)
    layer = method.clustering_layer
    y = method.online.backbone.maps(batch.views[0].images_B3SS, [layer])[layer].detach()
    other = method.target.backbone.maps(batch.views[1].images_B3SS, [layer])[layer].detach()
    k = method.consistency.num_clusters(batch.step, 0, WARMUP.clusters)
    made = method.consistency.cluster(batch.step, 0, [y, other], WARMUP)
    assert [len(one.centers_KD) for one in made] == [k, k]
    places = [view.geometry for view in batch.views]
    expected = losses.consistency_loss(
        [y, other], made, places, lambda p, c, o: vmf_distance(p, c, o, kappa=10.0)
    )
    output, prepared = forward(build(cfg), batch, WARMUP)
    assert output.terms["clustering"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert {pull.view for group in prepared.groups for pull in group.pulls} == {0}


def test_literal_warmup_runs_each_network_on_its_own_view(literal, image_list, tmp_path):
    batch, method = batch_for(literal, image_list, tmp_path), build(literal)
    seen: dict[str, list[torch.Tensor]] = {"online": [], "target": []}
    for name in seen:
        trunk = getattr(method, name).backbone
        trunk.conv1.register_forward_hook(lambda m, x, y, name=name: seen[name].append(x[0]))
    forward(method, batch, WARMUP)
    first, second = (view.images_B3SS for view in batch.views)
    assert [torch.equal(x, first) for x in seen["online"]] == [True, True]  # prototypes, then loss
    assert len(seen["target"]) == 1 and torch.equal(seen["target"][0], second)


def test_the_extra_literal_pass_leaves_no_trace_in_the_statistics(literal, image_list, tmp_path):
    batch, method = batch_for(literal, image_list, tmp_path), build(literal)
    before = {n: b.clone() for n, b in method.online.named_buffers()}
    method.prepare(batch.parts(1), WARMUP)
    assert all(torch.equal(before[n], b) for n, b in method.online.named_buffers())
    assert all(m.momentum == 0.1 for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("plan", [WARMUP, BOTH], ids=["warmup", "both"])
def test_literal_gradients_do_not_depend_on_the_parts(plan, literal, image_list, tmp_path):
    cfg = changed(literal, clustering={"images_per_group": 3})
    batch = batch_for(cfg, image_list, tmp_path)
    views = tuple(dataclasses.replace(v, images_B3SS=v.images_B3SS.double()) for v in batch.views)
    batch = dataclasses.replace(batch, views=views)

    def gradients(num_parts: int):
        method = build(cfg).double().eval()
        parts = batch.parts(num_parts)
        prepared, total = method.prepare(parts, plan), 0.0
        for part in parts:
            loss = sum(method(part, prepared, plan).terms.values())
            total += loss.item()
            loss.backward()
        return total, {n: p.grad for n, p in method.named_parameters() if p.grad is not None}

    (loss, whole), (same, quarters) = gradients(1), gradients(4)
    assert same == pytest.approx(loss, rel=1e-10)
    for name, gradient in whole.items():
        assert torch.allclose(quarters[name], gradient, rtol=1e-9, atol=1e-12), name


# --- the second update


def test_a_separate_update_sees_fresh_views_and_moves_both_networks_twice(
    tiny, image_list, tmp_path, monkeypatch
):
    cfg = changed(tiny, clustering={"separate_step": True}, warmup_epochs=0, clustering_every=1)
    seen: list[tuple[EpochPlan, Batch]] = []
    moved: list[float] = []
    update, follow = Run.update, Cyborgs.update_target

    def watched(self, batch, plan, epoch):
        seen.append((plan, batch))
        return update(self, batch, plan, epoch)

    monkeypatch.setattr(Run, "update", watched)
    monkeypatch.setattr(
        Cyborgs, "update_target", lambda self, p: (moved.append(p), follow(self, p))[1]
    )
    train(cfg, image_list, tmp_path / "run")
    assert len(seen) == len(moved) == 16  # 4 epochs of 2 steps of 2 updates
    (contrast, first), (clustering, second) = seen[:2]
    assert (contrast.contrast, clustering.contrast) == (True, False)
    assert torch.equal(first.indices_B, second.indices_B)
    assert not torch.equal(first.views[0].images_B3SS, second.views[0].images_B3SS)
    assert len(first.views) == len(second.views) == 2
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert len(rows) == 8
    for row in rows:
        assert row["loss"] == pytest.approx(row["contrast"] + row["clustering"], rel=1e-6)


# --- the smaller knobs


def test_clustering_the_fused_map_trains_the_whole_trunk(tiny, image_list, tmp_path):
    cfg = changed(tiny, clustering={"layer": "fused"})
    method = build(cfg)
    output, prepared = forward(method, batch_for(cfg, image_list, tmp_path), WARMUP)
    output.terms["clustering"].backward()
    assert all(p.grad is not None for p in method.online.backbone.parameters())
    assert all(p.grad is None for p in method.online.projector.parameters())
    assert prepared.groups[0].pulls[0].owner_BP.shape == (2, 16)  # 4x4 cells, not layer2's


def test_normalised_layers_weigh_the_same():
    maps = {"a": torch.full((1, 3, 2, 2), 100.0), "b": torch.full((1, 5, 2, 2), 0.01)}
    fused = fuse(maps, ["a", "b"], 2, "average", normalise=True)
    assert torch.allclose(fused[:, :3].norm(dim=1), torch.ones(1, 2, 2))
    assert torch.allclose(fused[:, 3:].norm(dim=1), torch.ones(1, 2, 2))


def test_the_released_sampling_draws_for_each_network_by_itself(tiny, image_list, tmp_path):
    cfg = changed(tiny, sampling="released", mask_ids=81)
    batch = batch_for(cfg, image_list, tmp_path)
    _, prepared = forward(build(cfg), batch, CONTRAST)
    for masks in prepared.masks:
        assert not torch.equal(masks.ids_BR, masks.target_ids_BR)
        for ids in (*masks.ids_BR, *masks.target_ids_BR):
            assert len(ids.unique()) == 4  # without replacement
    _, shared = forward(build(tiny), batch_for(tiny, image_list, tmp_path), CONTRAST)
    assert all(torch.equal(m.ids_BR, m.target_ids_BR) for m in shared.masks)


def test_ids_from_the_limit_on_become_background(tiny, image_list, tmp_path):
    cfg = changed(tiny, mask_ids=4)
    batch = batch_for(cfg, image_list, tmp_path)  # 5x5 grid: ids 0 to 24
    _, prepared = forward(build(cfg), batch, CONTRAST)
    assert int(batch.views[0].labels_BSS.max()) > 4
    assert all(int(masks.cells_Bgg.max()) < 4 for masks in prepared.masks)


def test_the_run_hands_the_preset_to_loader_and_device(tiny, image_list, tmp_path, monkeypatch):
    """Interpolation and saturation reach the pixels: the first step sees other images."""
    seen = []
    original = train_module.to_device

    def watched(batch, step, device, saturated):
        made = original(batch, step, device, saturated)
        seen.append((saturated, batch.views[0].images_B3SS, made.views[0].images_B3SS))
        return made

    monkeypatch.setattr(train_module, "to_device", watched)
    first = []
    for number, views in enumerate(({}, {"interpolation": "bilinear"}, {"saturation": "added"})):
        cfg = changed(tiny, warmup_epochs=0, refresh_masks_every=0, masks={"source": "grid"})
        seen.clear()
        train(changed(cfg, views=views), image_list, tmp_path / str(number))
        first.append(seen[0])
    plain, bilinear, added = first
    assert not torch.equal(plain[1], bilinear[1])
    assert torch.equal(plain[1], added[1]) and not torch.equal(plain[2], added[2])
    assert added[0] == "added"


def test_per_slot_statistics_are_those_of_each_slot():
    torch.manual_seed(0)
    head, rows = MLPHead(6, 5, 4, per_slot=True).train(), torch.randn(3, 7, 6)
    first, norm, _, last = head.layers
    for slot, out in enumerate(head(rows).unbind(1)):
        hidden = F.batch_norm(first(rows[:, slot]), None, None, norm.weight, norm.bias, True)
        assert torch.allclose(out, last(hidden.relu()), atol=1e-5)
    assert norm.num_batches_tracked == 7


def test_the_last_bias_is_there_on_request():
    assert MLPHead(6, 5, 4, bias=True).layers[3].bias.shape == (4,)
