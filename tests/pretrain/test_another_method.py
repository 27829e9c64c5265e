"""Another method joins by its module and its config: the loop is not touched."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import MaskConfig, MethodConfig, PretrainConfig
from pretrain.data import Batch, ViewSpec
from pretrain.ema import frozen_copy, update_average
from pretrain.methods import METHODS
from pretrain.methods.base import Method, StepOutput
from pretrain.photometry import Recipe
from pretrain.plan import EpochPlan
from sslbench.log import read_metrics
from sslbench.resnet import ResNet
from sslbench.rng import seeded
from tests.pretrain.compare import assert_equal
from tests.pretrain.runs import train, train_and_stop


class QueueConfig(MethodConfig):
    name: Literal["queue"] = "queue"
    momentum: float = 0.9


class QueueRunConfig(PretrainConfig):
    method: QueueConfig = QueueConfig()


class Queue(nn.Module):
    """MoCo in small: three views, a target network and a queue of keys, which is its own state."""

    def __init__(self, backbone: ResNet, crop_size: int, momentum: float) -> None:
        super().__init__()
        self.backbone, self.target = backbone, frozen_copy(backbone)
        self.momentum, self.precision = momentum, "fp32"
        recipe = Recipe(blur_probability=0.5, solarize_probability=0.0)
        self.view_spec = ViewSpec((recipe,) * 3, crop_size, num_uniforms=0)
        self.register_buffer("queue_ND", torch.zeros(8, backbone.channels("layer4")))

    @property
    def online_backbone(self) -> ResNet:
        return self.backbone

    def remarks(self) -> list[str]:
        return [f"the queue holds {len(self.queue_ND)} keys"]

    @torch.no_grad()
    def prepare(self, parts: Sequence[Batch], plan: EpochPlan) -> Tensor:
        images = torch.cat([part.views[0].images_B3SS for part in parts])
        keys_BD = F.normalize(self.target(images).mean((2, 3)), dim=1)
        self.queue_ND.copy_(torch.cat([keys_BD, self.queue_ND])[: len(self.queue_ND)])
        return keys_BD

    def forward(self, part: Batch, prepared: Tensor, plan: EpochPlan) -> StepOutput:
        images = torch.cat([view.images_B3SS for view in part.views[1:]])
        queries = F.normalize(self.backbone(images).mean((2, 3)), dim=1)
        keys = prepared[part.images].repeat(2, 1)
        pull = (1 - (queries * keys).sum(1)).mean()
        push = (queries @ self.queue_ND.clone().T).mean()
        return StepOutput({"pull": pull, "push": push}, {"share": push.detach()})

    def update_target(self, progress: float) -> dict[str, float]:
        update_average(self.target, self.backbone, self.momentum)
        return {"momentum": self.momentum}


def build(cfg: Any, start: ResNet | None = None) -> Queue:
    with seeded(cfg.seed, "initial weights"):
        return Queue(ResNet(cfg.arch.depth, cfg.arch.width), cfg.crop_size, cfg.method.momentum)


@pytest.fixture
def cfg(tiny, monkeypatch) -> QueueRunConfig:
    monkeypatch.setitem(METHODS, "queue", f"{__name__}:build")
    return QueueRunConfig(**{n: getattr(tiny, n) for n in type(tiny).model_fields if n != "method"})


def test_it_trains_without_masks_and_logs_its_own_values(cfg, image_list, tmp_path):
    assert isinstance(build(cfg), Method)
    train(cfg, image_list, tmp_path / "run")
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert len(rows) == 8
    assert {"pull", "push", "share", "momentum"} <= rows[0].keys()
    assert "target_rate" not in rows[0]
    assert not (tmp_path / "run/masks").exists()
    said = (tmp_path / "run/log.txt").read_text()
    assert "masks" not in said.replace("besides masks", "")
    assert "the queue holds 8 keys" in said


class MaskedQueueConfig(QueueConfig):
    """Such a method on masks of its own choice, renewed never."""

    @property
    def mask_config(self) -> MaskConfig:
        return MaskConfig(source="grid")

    def plan(self, epoch: int) -> EpochPlan:
        return dataclasses.replace(super().plan(epoch), refresh_masks=epoch == 1)


def test_a_method_with_masks_joins_as_well(cfg, image_list, tmp_path, monkeypatch):
    seen, original = [], Queue.forward

    def watched(self, part, prepared, plan):
        seen.append([view.labels_BSS for view in part.views])
        return original(self, part, prepared, plan)

    monkeypatch.setattr(Queue, "forward", watched)
    train(cfg.model_copy(update={"method": MaskedQueueConfig()}), image_list, tmp_path / "run")
    labels = [labels_BSS for views in seen[1:] for labels_BSS in views]
    assert all(labels_BSS is not None and labels_BSS.max() < 25 for labels_BSS in labels)
    assert "masks from grid before epochs 1" in (tmp_path / "run/log.txt").read_text()


def test_its_own_state_resumes_bit_equal(cfg, image_list, tmp_path, monkeypatch):
    whole = train(cfg, image_list, tmp_path / "whole")
    assert (whole["model"]["queue_ND"] != 0).any()
    train_and_stop(cfg, image_list, tmp_path / "cut", steps=5)
    assert_equal(train(cfg, image_list, tmp_path / "cut"), whole)


def test_its_milestones_are_not_those_of_cyborgs(cfg):
    from sslbench.config import build as build_config

    table = {"method": {"name": "queue"}, "schedule": {"epochs": 400, "rescale": True}}
    made = build_config(QueueRunConfig, table, where="test")
    assert made.schedule.lr_drops == (384, 392)
