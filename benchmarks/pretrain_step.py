"""A whole CYBORGS step against the bare network work that it contains.

    python -m benchmarks.pretrain_step --batch 8 --repeats 15

Bare: two online forward passes and one backward over both, two target forward passes without
gradient, MLP heads on equally many rows, same shapes, precision and memory format; a trivial loss,
no optimizer. The step adds masks, sampling, pooling, losses, k-means, LARS and the moving average.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.measure import hardware, interleaved, keep, print_table, spread
from pretrain.config import PretrainConfig
from pretrain.data import Batch, View
from pretrain.estimate import synthetic_batch
from pretrain.fusion import fuse
from pretrain.meter import peak_memory
from pretrain.methods.cyborgs import Cyborgs, build
from pretrain.optimizers import build_optimizer
from pretrain.precision import at_least_fp32, autocast
from pretrain.schedule import EpochPlan
from pretrain.train import sum_of

PLAIN = EpochPlan(refresh_masks=False, contrast=True, clustering_weight=0.0, clusters=(2, 256))
CLUSTERED = EpochPlan(
    refresh_masks=False, contrast=True, clustering_weight=0.1, clusters=(129, 129)
)  # the mean of 2..256
GOALS = {"plain": 1.06, "with clustering": 1.20}


def full_step(
    method: Cyborgs, cfg: PretrainConfig, batch: Batch, plan: EpochPlan
) -> Callable[[], object]:
    """The step as the loop takes it."""
    optimizer = build_optimizer(cfg.optimizer, method)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6  # the weights must not run away over the repeats

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        parts = batch.parts(1)
        output = method(parts[0], method.prepare(parts, plan), plan)
        sum_of(output.terms).backward()
        optimizer.step()
        method.update_target(0.5)

    return run


def bare_step(method: Cyborgs, cfg: PretrainConfig, batch: Batch) -> Callable[[], object]:
    """Networks alone."""
    layers, count = method.contrast_layers, cfg.method.masks_per_view

    def rows(branch: torch.nn.Module, view: View) -> Tensor:
        with autocast(cfg.precision, view.images_B3SS.device):
            maps = branch.backbone.maps(view.images_B3SS, layers)
            maps = {name: at_least_fp32(map_BDhw) for name, map_BDhw in maps.items()}
            fused = fuse(maps, layers, cfg.method.contrast_grid, cfg.method.fusion)
            vectors = fused.flatten(2)[:, :, :count].transpose(1, 2)
            projected: Tensor = branch.projector(vectors)
        return projected

    def run() -> None:
        method.zero_grad(set_to_none=True)
        total = batch.views[0].images_B3SS.new_zeros(())
        for view in batch.views:
            projected = rows(method.online, view)
            with autocast(cfg.precision, projected.device):
                total = total + method.online.predictor(projected).float().square().mean()
        with torch.no_grad():
            for view in batch.views:
                rows(method.target, view)
        total.backward()

    return run


def main(
    batch: Annotated[int, typer.Option(help="Images per step.")] = 8,
    repeats: Annotated[int, typer.Option(help="Timed turns of every variant.")] = 15,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    memory: Annotated[str, typer.Option(help="Only this variant, for its peak memory.")] = "",
    name: Annotated[str, typer.Option(help="Write benchmarks/results/NAME.json.")] = "",
) -> None:
    """Print seconds and ratios to the bare network, of a plain step and one with clustering."""
    cfg = PretrainConfig.model_validate({"batch_size": batch, "precision": precision})
    where = torch.device(device)
    method = build(cfg).to(where, memory_format=torch.channels_last).train()
    data = synthetic_batch(method.view_spec, batch, where)
    variants = {
        "bare network": bare_step(method, cfg, data),
        "plain": full_step(method, cfg, data, PLAIN),
        "with clustering": full_step(method, cfg, data, CLUSTERED),
    }
    if memory:
        for _ in range(3):
            variants[memory]()
        print(f"{memory}: peak {peak_memory(where) / 2**30:.3f} GiB")
        sys.exit()
    seconds = interleaved(variants, repeats, where)
    bare = statistics.median(seconds["bare network"])
    table = [
        {
            "variant": variant,
            **spread(values),
            "ratio": statistics.median(values) / bare,
            "goal": GOALS.get(variant, ""),
            "images/s": batch / statistics.median(values),
        }
        for variant, values in seconds.items()
    ]
    print_table(table)
    if name:
        settings = {"batch": batch, "repeats": repeats, "precision": precision}
        print(keep(name, {**settings, "hardware": hardware(where), "table": table}))


if __name__ == "__main__":
    typer.run(main)
