"""Images per second, time spent waiting for data, and memory."""

import resource
import time
from collections.abc import Iterator
from typing import TypeVar

import torch

Batch = TypeVar("Batch")


class Meter:
    """Measures images per second, the share of time spent waiting for data, and memory."""

    def __init__(self, images_per_step: int, device: torch.device) -> None:
        self.images_per_step, self.device = images_per_step, device
        self._step_began = time.monotonic()
        self._waited = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and clock how long each took to arrive."""
        while True:
            self._step_began = time.monotonic()
            batch = next(batches, None)
            self._waited = time.monotonic() - self._step_began
            if batch is None:
                return
            yield batch

    def rates(self) -> dict[str, float]:
        """Rates of the step that is under way."""
        seconds = max(time.monotonic() - self._step_began, 1e-9)
        return {
            "images_per_second": self.images_per_step / seconds,
            "seconds_waiting_for_data": self._waited,
            "share_waiting_for_data": self._waited / seconds,
            "peak_memory_gib": peak_memory(self.device) / 2**30,
        }


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: by torch on a GPU, by the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak_memory(device: torch.device) -> None:
    """Measure a GPU's peak from here on; that of a process on the CPU cannot be taken back."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
