"""Fair timing: variants take turns, so that a busy minute hits all of them."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binom

from sslbench.files import write_json

RESULTS = Path(__file__).resolve().parent / "results"


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Run every variant once untimed, then ``repeats`` times in turn; return seconds per run.

    Every other turn goes backwards, so that none always follows the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name in list(variants)[:: 1 if turn % 2 else -1]:
            synchronise(device)
            began = time.perf_counter()
            variants[name]()
            synchronise(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hardware(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print equal-keyed rows as aligned columns."""
    columns = list(rows[0])
    texts = [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(len(c), *(len(t[i]) for t in texts)) for i, c in enumerate(columns)]
    for line in [columns, *texts]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def median_with_interval(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """Median and its confidence interval, from order statistics: no distribution is assumed."""
    ordered = sorted(values)
    # how many of n values lie below the median of all is binomial
    low, high = binom.interval(level, len(ordered), 0.5)
    return {
        "median": statistics.median(ordered),
        "low": ordered[max(int(low) - 1, 0)],
        "high": ordered[min(int(high), len(ordered) - 1)],
    }


def keep(name: str, content: Mapping[str, Any]) -> Path:
    """Write ``benchmarks/results/NAME.json``."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(json.dumps(content)))
    return path
