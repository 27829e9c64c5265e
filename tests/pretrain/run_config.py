"""Run a pretraining config as a stage: run_config.py CONFIG.json IMAGES OUT [double].

In float64 rounding cannot hide or feign a difference: float32's grows tenfold in a step or two.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pretrain import train
from pretrain.config import PretrainConfig
from pretrain.data import Batch
from pretrain.methods.cyborgs import Cyborgs, build
from pretrain.stage import Pretrain
from sslbench.datasets import DataRoots
from sslbench.resnet import ResNet
from sslbench.stage import run_standalone


class InDouble(train.Run):
    """A run whose pictures are float64."""

    def say_plan(self) -> None:
        """Say nothing: its trial steps are float32."""

    def batches(self, *arguments) -> Iterator[Batch]:
        """The same batches, widened."""
        for batch in super().batches(*arguments):
            views = (replace(v, images_B3SS=v.images_B3SS.double()) for v in batch.views)
            yield replace(batch, views=tuple(views))


def build_in_double(cfg: PretrainConfig, start: ResNet | None) -> Cyborgs:
    """The method in float64."""
    return build(cfg, start).double()


def main(config: str, images: str, out: str, *double: str) -> None:
    """Train; errors end in one line."""
    if double:
        train.METHODS, train.Run = {"cyborgs": "__main__:build_in_double"}, InDouble
    cfg = PretrainConfig.model_validate_json(Path(config).read_text())
    stage = Pretrain(cfg.model_copy(update={"images": images}))
    try:
        run_standalone(stage, inputs={}, data=DataRoots(Path(images)), out=Path(out), device="cpu")
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(*sys.argv[1:])
