"""Our evaluation against pycocotools and lvis: seconds, memory, and the largest difference.

    python -m benchmarks.evaluation --name evaluation_cpu

Synthetic predictions over 2,000 images: COCO with 100 a picture, boxes and masks, LVIS with 300,
boxes; crowds, ties in the scores, all sizes. Every run is a process of its own; the fast one runs
before and after each of the reference's, so that a busy minute hits both. "evaluation" starts from
rows in memory, "from file" from the predictions file; ours is then read in pieces and checked.
Seconds are the wall's, and of all processors together ("cpu"), which a busy machine does
not stretch.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.evaluation_case import SHAPES, write_case
from benchmarks.measure import hardware, keep, print_table

# what is wanted of the ratio of the evaluations
CASES = {("coco", "box"): 20, ("coco", "mask"): 10, ("lvis", "box"): 20}
MOST_DIFFERENT = 1e-4  # of percent


def run(folder: Path, family: str, kind: str, mode: str) -> dict[str, Any]:
    """Evaluate once, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.evaluation_case", str(folder / family)]
    done = subprocess.run([*command, family, kind, mode], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """In percent; a number that only one side has makes it infinite."""
    differences = [0.0]
    for name, value in theirs.items():
        if (value is None) != (ours[name] is None):
            return float("inf")
        differences.append(0.0 if value is None else abs(value - ours[name]))
    return max(differences)


def compare(folder: Path, family: str, kind: str, repeats: int) -> list[dict[str, Any]]:
    """A row for ours and one for the reference."""
    runs: dict[str, list[dict[str, Any]]] = {"default": [], "rows": [], "reference": []}
    for _ in range(repeats):
        for mode in ("default", "rows", "reference", "default", "rows"):
            runs[mode].append(run(folder, family, kind, mode))
            print(f"{family} {kind} {mode}: {runs[mode][-1]['from file'][0]:.1f} s", flush=True)
    theirs = runs["reference"]
    different = max(
        largest_difference(own["metrics"], theirs[0]["metrics"])
        for own in (*runs["default"], *runs["rows"])
    )
    if different > MOST_DIFFERENT:
        raise AssertionError(f"{family} {kind}: the numbers differ by {different}")
    ours = {"from file": runs["default"], "evaluation": runs["rows"]}
    seconds = [medians({what: theirs for what in ours}), medians(ours)]
    return [
        {
            "case": f"{family} {kind}",
            "numbers": len(theirs[0]["metrics"]),
            "evaluator": of[0]["evaluator"],
            **{f"s {what}": value for what, value in own.items()},
            "MB": max(run["MB"] for run in of),
            **{f"x {what}": seconds[0][what] / value for what, value in own.items()},
            "wanted": wanted,
            "difference": different,
        }
        for own, of, wanted in zip(
            seconds, (theirs, runs["default"]), (1, CASES[family, kind]), strict=True
        )
    ]


def medians(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Seconds of each part, of the wall and of the processors."""
    return {
        f"{what}{end}": statistics.median(run[what][place] for run in of)
        for what, of in runs.items()
        for place, end in enumerate(("", " cpu"))
    }


def main(
    repeats: Annotated[int, typer.Option(help="Turns; ours runs twice in each.")] = 1,
    images: Annotated[int, typer.Option(help="Images of either data set.")] = 2000,
    name: Annotated[str, typer.Option(help="Write benchmarks/results/NAME.json.")] = "",
) -> None:
    """Print seconds, memory and ratios of every case."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for family in SHAPES:
            write_case(folder / family, family, images)
        rows = [row for case in CASES for row in compare(folder, *case, repeats)]
    print_table(rows)
    if name:
        said = {"images": images, "predictions of an image": {f: s[2] for f, s in SHAPES.items()}}
        said |= {"turns": repeats, "load before": load, "load after": os.getloadavg()[0]}
        said |= {"cores": len(os.sched_getaffinity(0)), "machine": "shared with other work"}
        print(keep(name, {**said, "hardware": hardware(torch.device("cpu")), "table": rows}))


if __name__ == "__main__":
    typer.run(main)
