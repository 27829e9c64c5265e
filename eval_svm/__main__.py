"""python -m eval_svm CHECKPOINT --voc ROOT: mAP of linear SVMs on frozen features.

    python -m eval_svm moco_v2.pth --voc VOCdevkit/VOC2007
    python -m eval_svm last.pt --voc /data --train train --test val "costs=[1.0]"

The last line is ``mAP NN.NN``. The same command continues an interrupted run.
"""

from pathlib import Path
from typing import Annotated

import typer

from eval_svm.config import SVMConfig
from eval_svm.stage import VOC07SVM
from sslbench.command import errors_in_one_paragraph
from sslbench.config import CONFIGS_DIR, load
from sslbench.datasets import DataRoots
from sslbench.results import read_results
from sslbench.stage import run_standalone

PROTOCOL = CONFIGS_DIR / "svm" / "voc07.toml"


def main(
    checkpoint: Annotated[Path, typer.Argument(help="file of any known code base")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help='key=value, as "costs=[1.0]"')
    ] = None,
    voc: Annotated[
        Path | None,
        typer.Option(
            help="folder with JPEGImages and ImageSets, or above it; default: "
            "DETECTRON2_DATASETS, else data"
        ),
    ] = None,
    train: Annotated[str | None, typer.Option(help="split, as trainval or train")] = None,
    test: Annotated[str | None, typer.Option(help="split, as test or val")] = None,
    branch: Annotated[str | None, typer.Option(help="online, target, or a prefix")] = None,
    config: Annotated[Path, typer.Option(help="TOML file; the protocol by default")] = PROTOCOL,
    out: Annotated[Path | None, typer.Option(help="run folder; default runs/svm/...")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="loader processes")] = 0,
) -> None:
    """Train one linear SVM per VOC07 class on frozen features and print the mAP."""
    splits = {"train": train, "test": test}
    chosen = [f"{name}=voc2007/{split}" for name, split in splits.items() if split]
    chosen += [f"branch={branch}"] if branch else []
    with errors_in_one_paragraph():
        stage = VOC07SVM(load(SVMConfig, config, [*chosen, *(overrides or ())]))
        folder, made = run_standalone(
            stage,
            inputs={"checkpoint": checkpoint},
            data=DataRoots.given([] if voc is None else [str(voc)]),
            out=out,
            device=device,
            num_workers=workers,
        )
    results = read_results(folder / made["results"])
    for note in results[0].footnotes:
        print(note)
    print(folder / made["results"])
    for row in reversed(results):
        print(f"{row.metric} {row.value:.2f}")


if __name__ == "__main__":
    typer.run(main)
