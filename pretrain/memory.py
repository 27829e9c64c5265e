"""Parts of a step that fit into memory, and what to say where they do not."""

import contextlib
from collections.abc import Iterator

import torch

from pretrain.config import PretrainConfig
from sslbench import dist
from sslbench.config import ConfigError


class OutOfMemoryError(ValueError):
    """A step that does not fit into the memory of the GPU."""


def require_equal_parts(cfg: PretrainConfig) -> None:
    """Refuse a batch that processes and accumulation cannot share equally."""
    world = dist.world_size()
    if cfg.batch_size % (world * cfg.accumulate):
        raise ConfigError(
            f"batch_size {cfg.batch_size} cannot be shared equally by {world} processes with "
            f"accumulate={cfg.accumulate}: take a multiple of {world * cfg.accumulate}"
        )
    if cfg.batch_size // cfg.accumulate < 2:
        raise ConfigError(
            f"batch_size {cfg.batch_size} with accumulate={cfg.accumulate} leaves one image at a "
            "time; BatchNorm needs two: lower accumulate"
        )


@contextlib.contextmanager
def out_of_memory_explained(cfg: PretrainConfig) -> Iterator[None]:
    """Say what to try when the GPU is too small."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        share = cfg.batch_size // dist.world_size()  # images of a process
        finer = [n for n in range(cfg.accumulate + 1, share // 2 + 1) if share % n == 0]
        ways = "take a smaller crop_size or arch, which changes the run"
        if finer:
            ways = (
                f"accumulate={finer[0]} makes it {share // finer[0]} (the same batch_size, only "
                f"BatchNorm sees fewer at a time), batch_size={cfg.batch_size // 2} changes the run"
            )
        raise OutOfMemoryError(
            f"{share // cfg.accumulate} images at a time do not fit into the GPU's memory; {ways}; "
            "any of it is a new run folder"
        ) from error
