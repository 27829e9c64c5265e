"""Config -> optimizer."""

import torch
from torch import nn
from torch.optim import Optimizer

from pretrain.config import AdamWConfig, LARSConfig, OptimizerConfig, SGDConfig
from pretrain.lars import LARS


def build_optimizer(cfg: OptimizerConfig, module: nn.Module) -> Optimizer:
    """Make the optimizer; biases and normalisation weights take no weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    match cfg:
        case LARSConfig():
            return LARS(groups, cfg.lr, momentum=cfg.momentum)
        case AdamWConfig():
            return torch.optim.AdamW(groups, cfg.lr, fused=True)
        case SGDConfig():
            return torch.optim.SGD(groups, cfg.lr, momentum=cfg.momentum, fused=True)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
