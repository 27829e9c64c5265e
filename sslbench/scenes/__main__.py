"""Make the built-in data: python -m sslbench.scenes --out DIR [--train N] [--test N] [--seed S]."""

import time
from pathlib import Path
from typing import Annotated

import typer

from sslbench.datasets import DataError
from sslbench.scenes.generate import SceneSettings, generate


def main(
    out: Annotated[Path, typer.Option(help="New or empty folder, or one made before.")],
    train: Annotated[int, typer.Option(help="Training pictures per layout.")] = 480,
    test: Annotated[int, typer.Option(help="Test pictures per layout.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
) -> None:
    """Draw small scenes and write them as VOC2007, COCO 2017 and LVIS v1."""
    began = time.monotonic()
    try:
        made = generate(out, SceneSettings(train, test, seed))
    except DataError as error:
        typer.secho(str(error), err=True, fg="red")
        raise typer.Exit(2) from None
    how = f"made in {time.monotonic() - began:.0f} s" if made else "already there"
    typer.echo(f"scenes in {out}: {how} (VOCdevkit, coco, lvis)")


if __name__ == "__main__":
    typer.run(main)
