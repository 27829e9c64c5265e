"""Our k-means against FAISS's: the same points, start and number of iterations.

    python -m benchmarks.kmeans --repeats 15

Both iterate over all points, without an early stop. The objective is the mean cosine of the points
with the nearest centre; where the two differ by more than 0.5 % there is no result.

Shape letters: N points, D channels, K clusters.
"""

import statistics
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.measure import hardware, interleaved, keep, print_table, spread
from pretrain.masks.assign import nearest
from pretrain.masks.kmeans import lloyd
from pretrain.masks.kmeans_faiss import faiss_centers, require_faiss

NUM_POINTS, CHANNELS = 50176, 256
CLUSTERS = (2, 64, 256)
ITERATIONS = 20
MOST_DIFFERENT = 0.005  # of the objectives
NUM_DIRECTIONS, NOISE = 300, 4.0  # of the points; K stays below the directions

BACKENDS = {"ours": lloyd, "faiss": faiss_centers}


def make_points(device: torch.device) -> Tensor:
    """Unit rows around many directions, so far apart that 20 iterations do not settle them."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(NUM_DIRECTIONS, CHANNELS, generator=generator), dim=1)
    own_N = torch.randint(NUM_DIRECTIONS, (NUM_POINTS,), generator=generator)
    noise_ND = torch.randn(NUM_POINTS, CHANNELS, generator=generator) / CHANNELS**0.5
    return F.normalize(directions[own_N] + NOISE * noise_ND, dim=1).to(device)


def objective(points_ND: Tensor, centers_KD: Tensor) -> float:
    """Mean cosine with the nearest centre."""
    return (points_ND * centers_KD[nearest(points_ND, centers_KD)]).sum(dim=1).mean().item()


def compare(points_ND: Tensor, num_clusters: int, repeats: int) -> list[dict[str, Any]]:
    """One row per backend; the ratio is FAISS's time over its own."""
    start_KD = points_ND[torch.randperm(len(points_ND))[:num_clusters].to(points_ND.device)]
    late, last = (lloyd(points_ND, start_KD, n, "cosine") for n in (ITERATIONS - 1, ITERATIONS))
    if torch.equal(late, last):
        raise AssertionError("the points settle early: the iterations do not compare")
    variants = {
        name: lambda run=run: run(points_ND, start_KD, ITERATIONS, "cosine")
        for name, run in BACKENDS.items()
    }
    reached = {name: objective(points_ND, run()) for name, run in variants.items()}
    if abs(reached["ours"] / reached["faiss"] - 1) > MOST_DIFFERENT:
        raise AssertionError(f"K = {num_clusters}: not the same clustering: {reached}")
    seconds = interleaved(variants, repeats, points_ND.device)
    faiss = statistics.median(seconds["faiss"])
    return [
        {
            "K": num_clusters,
            "backend": name,
            **spread(seconds[name]),
            "faiss/own": faiss / statistics.median(seconds[name]),
            "objective": f"{reached[name]:.6f}",
        }
        for name in variants
    ]


def main(
    repeats: Annotated[int, typer.Option(help="Timed turns of either backend.")] = 15,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    name: Annotated[str, typer.Option(help="Write benchmarks/results/NAME.json.")] = "",
) -> None:
    """Print seconds of both backends, their ratio and their objectives."""
    torch.manual_seed(0)
    require_faiss().omp_set_num_threads(torch.get_num_threads())
    points_ND = make_points(torch.device(device))
    rows = [row for k in CLUSTERS for row in compare(points_ND, k, repeats)]
    print_table(rows)
    if name:
        said = {"points": NUM_POINTS, "channels": CHANNELS, "iterations": ITERATIONS}
        print(keep(name, {**said, "hardware": hardware(points_ND.device), "table": rows}))


if __name__ == "__main__":
    typer.run(main)
