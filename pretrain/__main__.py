"""python -m pretrain CONFIG [key=value ...] --out DIR [--data ROOT]: pretrain on images.

    python -m pretrain configs/pretrain/cyborgs.toml --data /data --out runs/cyborgs
    python -m pretrain configs/pretrain/cyborgs.toml images=photos/ batch_size=128 ...

``images`` is a folder, a .txt list, a .tar, or a data-set split such as coco2017/train below ROOT.
The same command continues an interrupted run.
"""

from pathlib import Path
from typing import Annotated

import typer

from pretrain.config import PretrainConfig
from pretrain.stage import Pretrain
from sslbench import dist
from sslbench.command import Data, errors_in_one_paragraph
from sslbench.config import load
from sslbench.datasets import DataRoots
from sslbench.stage import run_standalone


def main(
    config: Annotated[Path, typer.Argument(help="TOML file, e.g. configs/pretrain/cyborgs.toml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value, as images=photos/")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default runs/pretrain/...")] = None,
    data: Data = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="loader processes")] = 0,
) -> None:
    """Pretrain on images; the same command continues an interrupted run."""
    with errors_in_one_paragraph():
        cfg = load(PretrainConfig, config, overrides or ())
        folder, made = run_standalone(
            Pretrain(cfg),
            inputs=cfg.inputs,
            data=DataRoots.given(data or ()),
            out=out,
            device=device,
            num_workers=workers,
        )
    if dist.is_main():
        print(folder / made["checkpoint"])


if __name__ == "__main__":
    typer.run(main)
