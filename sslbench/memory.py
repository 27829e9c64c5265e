"""A batch in parts that fit into memory, and what to say where they do not."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sslbench import dist
from sslbench.config import ConfigError


class OutOfMemoryError(ValueError):
    """A step that does not fit into the memory of the GPU."""


@dataclass(frozen=True)
class SharedBatch:
    """A batch that the processes share equally, each in ``accumulate`` equal parts.

    Args:
        size: images of a step, over all processes.
        key: how the user writes the size.
        least: images that must stay together, over all processes.
        smaller: what else can be made smaller.
    """

    size: int
    accumulate: int
    key: str
    smaller: str
    least: int = 1

    @property
    def part(self) -> int:
        """Images that a process holds at a time."""
        return self.size // (dist.world_size() * self.accumulate)

    def require_equal_parts(self) -> None:
        """Refuse a batch that processes and accumulation cannot share equally.

        Raises:
            ConfigError: it leaves a remainder, or too few images at a time.
        """
        world = dist.world_size()
        if self.size % (world * self.accumulate):
            raise ConfigError(
                f"{self.key} {self.size} cannot be shared equally by {world} processes with "
                f"accumulate={self.accumulate}: take a multiple of {world * self.accumulate}"
            )
        if self.size // self.accumulate < self.least:
            raise ConfigError(
                f"{self.key} {self.size} with accumulate={self.accumulate} leaves one image at a "
                "time; BatchNorm needs two: lower accumulate"
            )

    @contextlib.contextmanager
    def out_of_memory_explained(self) -> Iterator[None]:
        """Say what to try when the GPU is too small.

        Raises:
            OutOfMemoryError: instead of torch's own.
        """
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            share = self.size // dist.world_size()  # images of a process
            most = share // self.least  # parts of a process
            finer = [n for n in range(self.accumulate + 1, most + 1) if share % n == 0]
            ways = f"take a smaller {self.smaller}, which changes the run"
            if finer:
                ways = (
                    f"accumulate={finer[0]} makes it {share // finer[0]} (the same {self.key}, "
                    f"only BatchNorm sees fewer at a time), {self.key}={self.size // 2} changes "
                    "the run"
                )
            raise OutOfMemoryError(
                f"{self.part} images at a time do not fit into the GPU's memory; {ways}; "
                "any of it is a new run folder"
            ) from error
