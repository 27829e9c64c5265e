"""How a pretraining's batch is shared, and what to make smaller where it does not fit."""

from pretrain.config import PretrainConfig
from sslbench.memory import SharedBatch


def shared_batch(cfg: PretrainConfig) -> SharedBatch:
    """The batch of a config; BatchNorm over rows needs two images at a time."""
    return SharedBatch(
        cfg.batch_size, cfg.accumulate, "batch_size", smaller="crop_size or arch", least=2
    )
