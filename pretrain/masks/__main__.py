"""python -m pretrain.masks make|ls|verify|show|quality: masks, and what they are worth.

    python -m pretrain.masks make masks/fh --data /data --images coco2017/train source=felzenszwalb
    python -m pretrain.masks make masks/mine --data /data --images coco2017/train \\
        --checkpoint RUN/checkpoints/last.pt max_clusters=81
    python -m pretrain.masks ls runs/pretrain/cyborgs-4f2a9c01b7de
    python -m pretrain.masks verify RUN/masks/epoch_0006 --data /data --images coco2017/train
    python -m pretrain.masks show RUN/masks/epoch_* --data /data --images coco2017/train \\
        --out gallery.html
    python -m pretrain.masks quality RUN/masks/epoch_* --data /data --spec coco2017/train

A store is a folder RUN/masks/epoch_0006, or one that ``make`` made.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslbench import dist
from sslbench.command import Data, errors_in_one_paragraph, require_place
from sslbench.datasets import DataRoots

if TYPE_CHECKING:
    from pretrain.masks.listing import Row

app = typer.Typer(
    help="Make masks; list, check, show and measure these and those of a pretraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TITLES = {"bytes_per_image": "bytes/image", "clusters": "K"}


@app.command()
def make(
    store: Annotated[Path, typer.Argument(help="folder to make, as masks/fh")],
    images: Annotated[str, typer.Option(help="whose masks: folder, list, tar or split")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="source=felzenszwalb, max_clusters=81, seed=3: as in method.masks"),
    ] = None,
    data: Data = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="network whose features source=kmeans clusters")
    ] = None,
    branch: Annotated[
        str | None, typer.Option(help="of the checkpoint: online (default), target or a prefix")
    ] = None,
    device: Annotated[
        str, typer.Option(help="of the network: auto, cpu, cuda, cuda:1 ...")
    ] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="processes that help")] = 0,
) -> None:
    """Make masks of any images; the same command continues an interrupted store."""
    from pretrain.masks.listing import list_masks
    from pretrain.masks.make import Order, make_store

    with errors_in_one_paragraph():
        order = Order.read(images, overrides or (), checkpoint, branch)
        make_store(store, order, DataRoots.given(data or ()), device, workers)
        if dist.is_main():
            _print_rows(list_masks(store))


@app.command()
def ls(
    path: Annotated[Path, typer.Argument(help="run folder, its masks/ folder, or one store")],
) -> None:
    """List mask generations, one row each."""
    from pretrain.masks.listing import list_masks

    with errors_in_one_paragraph():
        _print_rows(list_masks(path))


def _print_rows(rows: "Sequence[Row]") -> None:
    names = [field.name for field in dataclasses.fields(rows[0])]
    table = [[TITLES.get(name, name) for name in names], *(dataclasses.astuple(r) for r in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        print("  ".join(padded).rstrip())


@app.command()
def verify(
    store: Annotated[Path, typer.Argument(help="a mask store, as RUN/masks/epoch_0006")],
    data: Data = None,
    images: Annotated[
        str | None, typer.Option(help="the images it was made for: folder, list, tar or split")
    ] = None,
) -> None:
    """Check a store, with --images against them too: a line for each problem, and exit code 1."""
    from pretrain.masks.verify import hash_state, problems
    from sslbench.datasets import images as list_images

    with errors_in_one_paragraph():
        listed = None if images is None else list_images(images, DataRoots.given(data or ()))
        whole = True
        for problem in problems(store, listed):
            print(problem)
            whole = False
        if whole:
            print(f"{store} is whole ({hash_state(store)})")
    sys.exit(0 if whole else 1)


@app.command()
def show(
    stores: Annotated[list[Path], typer.Argument(help="mask stores of the same images, in order")],
    images: Annotated[str, typer.Option(help="their images: folder, list, tar or split")],
    out: Annotated[Path, typer.Option(help="gallery.html or gallery.png")],
    data: Data = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="images, evenly spread (default 10)")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="file name of an image to show; give it several times")
    ] = None,
    crf: Annotated[bool, typer.Option("--crf", help="refined by a dense CRF as well")] = False,
    upsampled: Annotated[
        bool, typer.Option("--upsampled", help="clusters of upsampled features as well")
    ] = False,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="that made the masks, for --crf and --upsampled: one for all, or each"),
    ] = None,
) -> None:
    """Draw masks side by side with their images and, where known, the objects in them."""
    from pretrain.masks.gallery import write_page, write_png
    from pretrain.masks.panels import Shown, Wanted, open_stores, pictures
    from sslbench.datasets import images as list_images

    with errors_in_one_paragraph():
        if out.suffix not in (".html", ".png"):
            raise ValueError(f"--out {out}: give a name that ends in .html or .png")
        require_place("--out", out)
        if name and count:
            raise ValueError(f"--count {count} beside --name: give one of them")
        wanted = Wanted(crf=crf, upsampled=upsampled, checkpoints=tuple(checkpoint or ()))
        roots = DataRoots.given(data or ())
        listed = list_images(images, roots)
        opened = open_stores(stores, listed)
        shown = Shown.load(images, listed, roots)
        places = shown.places_of(name) if name else shown.places(count or 10)
        out.parent.mkdir(parents=True, exist_ok=True)
        made = pictures(opened, shown, places, wanted)
        if out.suffix == ".png":
            write_png(out, made)
        else:
            write_page(out, made, f"Masks of {images}", [*wanted.notes(), *shown.notes()])
    print(out)


@app.command()
def quality(
    stores: Annotated[list[Path], typer.Argument(help="mask stores of the same images")],
    spec: Annotated[str, typer.Option(help="labelled split, as coco2017/val:segments")],
    data: Data = None,
    images: Annotated[str, typer.Option(help="what the masks were made of, if not the split")] = "",
    out: Annotated[Path | None, typer.Option(help="folder for quality.json, .csv, curve")] = None,
    workers: Annotated[int, typer.Option(min=0, help="processes that help")] = 0,
) -> None:
    """Measure masks against annotations: a table of stores and measures."""
    from pretrain.masks.quality_command import run_quality

    with errors_in_one_paragraph():
        print(
            run_quality(
                stores, spec, DataRoots.given(data or ()), images=images, out=out, workers=workers
            )
        )


if __name__ == "__main__":
    app()
