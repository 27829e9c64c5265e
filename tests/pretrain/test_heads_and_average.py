"""Projector, predictor and the moving average."""

import torch
from torch import nn

from pretrain.ema import frozen_copy, update_average
from pretrain.heads import MLPHead


def test_the_last_layer_has_no_bias_and_no_norm():
    head = MLPHead(6, 5, 4)
    names = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert names == {
        "layers.0.weight": (5, 6),
        "layers.0.bias": (5,),
        "layers.1.weight": (5,),
        "layers.1.bias": (5,),
        "layers.3.weight": (4, 5),
    }


def test_statistics_are_over_all_rows_of_all_slots():
    head, rows = MLPHead(6, 5, 4).train(), torch.randn(3, 7, 6)
    flat = head(rows.view(21, 1, 6)).view(3, 7, 4)
    assert torch.allclose(head(rows), flat, atol=1e-6)


def test_the_average_moves_parameters_and_leaves_statistics():
    online = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    target = frozen_copy(online)
    with torch.no_grad():
        online[0].weight += 1
        online[1].running_mean += 1
    before = target[0].weight.clone()
    update_average(target, online, rate=0.75)
    assert torch.allclose(target[0].weight, before + 0.25)
    assert (target[1].running_mean == 0).all()
    assert not any(p.requires_grad for p in target.parameters())
