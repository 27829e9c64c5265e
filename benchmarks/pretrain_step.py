"""A whole CYBORGS step against the bare network work that it contains.

    python -m benchmarks.pretrain_step --batch 8 --repeats 15

Bare: two online forward passes and one backward over both, two target forward passes without
gradient, MLP heads on equally many rows, same shapes, precision and memory format; a trivial loss,
no optimizer. The step adds masks, sampling, pooling, losses, k-means, LARS and the moving average.

The first table is of the precision asked for in the loop's memory format (channels-last), the
second of other precisions and formats. The third tells where the time of a step goes; augmentation
is part of it, but not of the ratios. All take turns in one run. The last is peak memory, each
variant in a process of its own.
"""

import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import typer

from benchmarks.measure import hardware, interleaved, keep, print_table, spread
from benchmarks.step_work import BARE, PLANS, Bench, Run, Setting
from benchmarks.stopwatch import Stopwatch
from sslbench.meter import peak_memory

GOALS = {"plain": 1.06, "with clustering": 1.20}
MEMORY_GOAL = 1.15
SETTINGS = (
    Setting("fp32", "contiguous"),
    Setting("fp32", "channels-last"),
    Setting("bf16", "channels-last"),
)


def ratios(seconds: dict[str, list[float]], num_images: int) -> list[dict[str, Any]]:
    """One row per variant, against the bare network."""
    bare = statistics.median(seconds[BARE])
    return [
        {
            "variant": variant,
            **spread(values),
            "ratio": statistics.median(values) / bare,
            "goal": GOALS.get(variant, ""),
            "images/s": num_images / statistics.median(values),
        }
        for variant, values in seconds.items()
    ]


def by_setting(
    seconds: Mapping[tuple[Setting, str], list[float]], num_images: int
) -> dict[Setting, list[dict[str, Any]]]:
    """Rows of every setting, each against the bare network of its own."""
    tables = {}
    for setting in dict.fromkeys(setting for setting, _ in seconds):
        own = {name: values for (of, name), values in seconds.items() if of == setting}
        tables[setting] = ratios(own, num_images)
    return tables


def peaks(batch: int, device: str, precision: str) -> list[dict[str, Any]]:
    """One row per variant, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.pretrain_step", "--batch", str(batch)]
    command += ["--device", device, "--precision", precision, "--memory"]
    found = {}
    for variant in (BARE, *PLANS):
        said = subprocess.run([*command, variant], check=True, capture_output=True, text=True)
        found[variant] = float(re.search(r"peak ([0-9.]+) GiB", said.stdout)[1])
    return [
        {
            "variant": variant,
            "peak GiB": gib,
            "ratio": gib / found[BARE],
            "goal": "" if variant == BARE else MEMORY_GOAL,
        }
        for variant, gib in found.items()
    ]


def main(
    batch: Annotated[int, typer.Option(help="Images per step.")] = 8,
    repeats: Annotated[int, typer.Option(help="Timed turns of every variant.")] = 15,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    memory: Annotated[str, typer.Option(help="Only this variant, for its peak memory.")] = "",
    name: Annotated[str, typer.Option(help="Write benchmarks/results/NAME.json.")] = "",
) -> None:
    """Print seconds and ratios to the bare network, of a plain step and one with clustering."""
    where, asked = torch.device(device), Setting(precision, "channels-last")
    # First of all: a process inherits the peak of the one that starts it.
    memory_rows = [] if memory else peaks(batch, device, precision)
    bench = Bench(asked, batch, where)
    if memory:
        for _ in range(3):
            bench.runs()[memory]()
        print(f"{memory}: peak {peak_memory(where) / 2**30:.3f} GiB")
        sys.exit()
    benches = {asked: bench} | {s: Bench(s, batch, where) for s in SETTINGS if s != asked}
    watches = {kind: Stopwatch(where) for kind in PLANS}
    variants: dict[tuple[Any, str], Run] = {
        (setting, variant): run
        for setting, of in benches.items()
        for variant, run in of.runs().items()
    }
    clocked = {
        ("by part", kind): bench.run_by_part(plan, watches[kind]) for kind, plan in PLANS.items()
    }
    seconds = interleaved(variants | clocked, repeats, where)
    tables = by_setting({key: seconds[key] for key in variants}, batch)
    settings = [
        {"precision": setting.precision, "memory_format": setting.memory_format, **row}
        for setting, rows in tables.items()
        for row in rows
    ]
    parts = [{"step": kind, **row} for kind, watch in watches.items() for row in watch.split()]
    for rows in (tables[asked], settings, parts, memory_rows):
        print_table(rows)
        print()
    if name:
        said = {"batch": batch, "repeats": repeats, "precision": precision}
        found = {"table": tables[asked], "settings": settings, "parts": parts}
        found["memory"] = memory_rows
        print(keep(name, {**said, "hardware": hardware(where), **found}))


if __name__ == "__main__":
    typer.run(main)
