"""Seconds and memory of converting a raw MoCo checkpoint, parity and the start of Python included.

    python -m benchmarks.convert --repeats 3 --name convert_cpu

The file is what MoCo v2 leaves behind: a ResNet-50 of width 1 as query and as key encoder, heads,
the queue of 65,536 keys, and the momentum of SGD. Each conversion is a process of its own, ``python
-m transfer convert``, into an empty folder; memory is the most that the process ever held
(``ru_maxrss``). Whether Detectron2 is installed decides what parity runs in; the row says it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.measure import hardware, keep, print_table, spread
from sslbench.resnet import ResNet
from sslbench.rng import seeded

QUEUE, FEATURES = 65_536, 128
WAYS = (
    ("c4", "pkl"),
    ("fpn", "pkl"),
    ("fpn", "pth"),
    ("fpn", "safetensors"),
    ("torchvision", "pth"),
)
SECONDS, MEGABYTES = 15, 1500  # what may be needed at most


def write_moco(path: Path) -> None:
    """Write the file; BatchNorm has seen noise, or the maps of an untrained network explode."""
    with seeded(0, "benchmark"), torch.no_grad():
        query = ResNet(50).train()
        for module in query.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain mean over all batches
        for _ in range(4):
            query(torch.randn(8, 3, 128, 128))
        trunk = query.state_dict()
        state = {f"module.encoder_q.{name}": value for name, value in trunk.items()}
        head = {"fc.0.weight": torch.randn(2048, 2048), "fc.0.bias": torch.randn(2048)}
        head |= {"fc.2.weight": torch.randn(FEATURES, 2048), "fc.2.bias": torch.randn(FEATURES)}
        state |= {f"module.encoder_q.{name}": value for name, value in head.items()}
        state |= {k.replace("encoder_q", "encoder_k"): v.clone() for k, v in state.items()}
        state |= {"module.queue": torch.randn(FEATURES, QUEUE), "module.queue_ptr": torch.zeros(1)}
        learned = [*query.parameters(), *head.values()]
        momentum = {i: {"momentum_buffer": torch.randn_like(p)} for i, p in enumerate(learned)}
    options = {"lr": 0.03, "momentum": 0.9, "params": list(momentum)}
    optimizer = {"state": momentum, "param_groups": [options]}
    saved = {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}
    torch.save(saved, path)


def convert(checkpoint: Path, layout: str, ending: str, out: Path) -> tuple[float, float]:
    """Run the command; return seconds and megabytes."""
    weights = out / f"{layout}.{ending}"
    command = [sys.executable, "-m", "transfer", "convert", checkpoint, "--layout", layout]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--out", weights], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise RuntimeError(f"converting to {layout}.{ending} ended with status {status}")
    return seconds, usage.ru_maxrss * 1024 / 1e6  # Linux counts kibibytes


def measure(checkpoint: Path, layout: str, ending: str, repeats: int) -> dict[str, Any]:
    """One row: several runs of one conversion."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=checkpoint.parent) as out:
            runs.append(convert(checkpoint, layout, ending, Path(out)))
            record = json.loads(next(Path(out).glob("*.parity.json")).read_text())
    seconds, megabytes = zip(*runs, strict=True)
    levels = record["levels"].values()
    return {
        "layout": layout,
        "format": ending,
        **{f"s {name}": value for name, value in spread(list(seconds)).items()},
        "MB max": max(megabytes),
        "parity": f"{max(level['relative'] for level in levels):.1e}",
        "in": record["reference"],
    }


def main(
    repeats: Annotated[int, typer.Option(help="Runs of every conversion.")] = 3,
    name: Annotated[str, typer.Option(help="Write benchmarks/results/NAME.json.")] = "",
) -> None:
    """Print seconds, memory and parity of every layout and format."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "checkpoint_0199.pth.tar"
        write_moco(checkpoint)
        size = checkpoint.stat().st_size / 1e6
        rows = [measure(checkpoint, *way, repeats) for way in WAYS]
    print(f"from a file of {size:.0f} MB; at most {SECONDS} s and {MEGABYTES} MB are wanted")
    print_table(rows)
    if name:
        said = {"checkpoint MB": size, "hardware": hardware(torch.device("cpu"))}
        print(keep(name, {**said, "cores": len(os.sched_getaffinity(0)), "table": rows}))


if __name__ == "__main__":
    typer.run(main)
