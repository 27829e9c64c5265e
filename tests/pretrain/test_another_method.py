"""A method without masks joins by its module and its config: the loop is not touched."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import MethodConfig, PretrainConfig
from pretrain.data import Batch, ViewSpec
from pretrain.ema import frozen_copy, update_average
from pretrain.methods import METHODS
from pretrain.methods.base import Method, StepOutput
from pretrain.photometry import Recipe
from pretrain.schedule import EpochPlan
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
    assert "masks" not in (tmp_path / "run/log.txt").read_text().replace("besides masks", "")


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
