"""What nearest neighbours see of a trunk: k-NN by way of pooling, and how features are spread.

    python -m benchmarks.neighbours --data VOCdevkit --train voc2007/train --test voc2007/val \\
        --crop 96 "CYBORGS=a.pt,b.pt" "control=c.pt,d.pt"

k-NN (mean average precision in percent, 20 neighbours, temperature 0.07) of the last map's cells
averaged; averaged and whitened (the principal directions of the training features, each scaled to
unit variance, the mean taken off); their maximum; and the middle cell alone.

Spread, of the training images: the effective rank of the averages (Roy and Vetterli 2007: the
exponential of the entropy of the variance's shares by principal direction), and which share of the
cells' variance lies within images.

Shape letters: N images, C channels, H x W cells, D directions.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.measure import hardware, keep, print_table
from sslbench.checkpoint import load_backbone
from sslbench.datasets import DataRoots, ImageLabels, labelled_splits
from sslbench.features import CentreCrops, crop_maps
from sslbench.knn import Vote, mean_average_precision
from sslbench.loading import start_loading

DIRECTIONS = 256
BATCH = 64
LEAST_SPREAD = 1e-4  # of the largest standard deviation


def average(maps_NCHW: Tensor) -> Tensor:
    """Average of the cells, (N, C)."""
    return maps_NCHW.mean(dim=(2, 3))


def maximum(maps_NCHW: Tensor) -> Tensor:
    """Largest of the cells by channel, (N, C)."""
    return maps_NCHW.amax(dim=(2, 3))


def middle(maps_NCHW: Tensor) -> Tensor:
    """The middle cell, (N, C)."""
    height, width = maps_NCHW.shape[2:]
    return maps_NCHW[:, :, height // 2, width // 2]


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "average": average,
    "maximum": maximum,
    "middle cell": middle,
}


def principal(features_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), principal directions (D, C) and standard deviations along them (D,)."""
    mean_C = features_NC.mean(dim=0)
    _, singular_D, directions_DC = torch.linalg.svd(features_NC - mean_C, full_matrices=False)
    return mean_C, directions_DC, singular_D / len(features_NC) ** 0.5


def whiten(train_NC: Tensor, test_NC: Tensor, directions: int) -> tuple[Tensor, Tensor]:
    """Both along the first principal directions of the training features, at unit variance.

    Directions in which the training features hardly vary (dead channels, few images) are left out:
    they would be nothing but noise, blown up.
    """
    mean_C, directions_DC, deviation_D = principal(train_NC)
    directions = min(directions, int((deviation_D > LEAST_SPREAD * deviation_D[0]).sum()))
    scale_CD = directions_DC[:directions].T / deviation_D[:directions]
    return (train_NC - mean_C) @ scale_CD, (test_NC - mean_C) @ scale_CD


def effective_rank(features_NC: Tensor) -> float:
    """Number of directions, were the variance spread evenly over them."""
    variance_D = principal(features_NC)[2].square()
    share_D = variance_D / variance_D.sum()
    return torch.special.entr(share_D).sum().exp().item()


def share_within(maps_NCHW: Tensor) -> float:
    """Share of the cells' variance that lies within images, from 0 to 1."""
    cells_NCP = maps_NCHW.flatten(2)
    all_1C1 = cells_NCP.mean(dim=(0, 2), keepdim=True)
    own_NC1 = cells_NCP.mean(dim=2, keepdim=True)
    return ((cells_NCP - own_NC1).square().mean() / (cells_NCP - all_1C1).square().mean()).item()


def last_maps(path: Path, side: ImageLabels, resize: int, crop: int) -> Tensor:
    """Maps of all images of a split, (N, C, H, W)."""
    network = load_backbone(path, "online").build().eval()
    crops = CentreCrops(side.paths, resize, crop)
    return torch.cat([crop_maps(network, x) for x in start_loading(crops, batch_size=BATCH)])


def measure(path: Path, sides: Sequence[ImageLabels], resize: int, crop: int) -> dict[str, float]:
    """All figures of one checkpoint."""
    train, test = (last_maps(path, side, resize, crop) for side in sides)
    labels = [torch.from_numpy(side.matrix) for side in sides]

    def knn(train_ND: Tensor, test_ND: Tensor) -> float:
        found = mean_average_precision(train_ND, labels[0], test_ND, labels[1], Vote())
        return 100 * found

    figures = {f"k-NN, {name}": knn(pool(train), pool(test)) for name, pool in POOLINGS.items()}
    figures["k-NN, average whitened"] = knn(*whiten(average(train), average(test), DIRECTIONS))
    figures["effective rank"] = effective_rank(average(train))
    figures["variance within images"] = share_within(train)
    return figures


def summary(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """One row per figure: each name's mean and standard deviation over its checkpoints."""
    rows = []
    for figure in next(iter(found.values()))[0]:
        row: dict[str, Any] = {"figure": figure}
        for name, of_each in found.items():
            values = [figures[figure] for figures in of_each]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            row[name] = f"{statistics.mean(values):.2f}{spread}"
        rows.append(row)
    return rows


def main(
    trunks: Annotated[list[str], typer.Argument(help="NAME=CHECKPOINT[,CHECKPOINT...] each")],
    data: Annotated[Path, typer.Option(help="Folder of the data")],
    train: Annotated[str, typer.Option(help="Split that votes")] = "voc2007/train",
    test: Annotated[str, typer.Option(help="Split that is voted on")] = "voc2007/val",
    resize: Annotated[int, typer.Option(help="Pixels of the shorter side")] = 96,
    crop: Annotated[int, typer.Option(help="Pixels of the centre crop")] = 96,
    save: Annotated[bool, typer.Option(help="Keep the figures in benchmarks/results")] = False,
) -> None:
    """Print the figures of one or more trunks side by side."""
    sides = labelled_splits(train, test, DataRoots(data))
    found: dict[str, list[dict[str, float]]] = {}
    for trunk in trunks:
        name, _, paths = trunk.partition("=")
        if not paths:
            raise typer.BadParameter(f"{trunk!r} is not NAME=CHECKPOINT[,CHECKPOINT...]")
        found[name] = [measure(Path(x), sides, resize, crop) for x in paths.split(",")]
    print_table(summary(found))
    if save:
        setting = {"train": train, "test": test, "resize": resize, "crop": crop}
        keep("neighbours", {"hardware": hardware(torch.device("cpu")), **setting, "found": found})


if __name__ == "__main__":
    typer.run(main)
