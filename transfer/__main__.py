"""python -m transfer convert|verify|run|inspect: from a checkpoint to weights to numbers.

    python -m transfer inspect moco_v2.pth
    python -m transfer convert moco_v2.pth --layout c4 --out runs/moco_c4
    python -m transfer verify runs/moco_c4/weights.pkl --against moco_v2.pth --config my.yaml
    python -m transfer run voc0712_det --weights runs/moco_c4/weights.pkl --data /data

Every command continues what was interrupted, and does nothing where it is already done.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sslbench.command import errors_in_one_paragraph
from sslbench.datasets import DataRoots
from sslbench.stage import run_standalone

app = typer.Typer(
    help="Convert checkpoints to detector weights and fine-tune detectors from them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Checkpoint = Annotated[Path, typer.Argument(help="file of any known code base")]
Branch = Annotated[str, typer.Option(help="online, target, or the prefix in front of conv1.weight")]
Out = Annotated[Path | None, typer.Option(help="run folder; default runs/KIND/...")]


@app.command()
def convert(
    checkpoint: Checkpoint,
    layout: Annotated[Literal["c4", "fpn"], typer.Option(help="kind of detector")],
    branch: Branch = "online",
    out: Out = None,
    rescale: Annotated[
        float | None, typer.Option(help="factor of every layer's weight norm, as 0.1 after LARS")
    ] = None,
    rescale_to: Annotated[
        Path | None, typer.Option(help="checkpoint whose weight norms are taken over")
    ] = None,
    anchor_branch: Annotated[
        str | None, typer.Option(help="branch of --rescale-to; default online")
    ] = None,
) -> None:
    """Write weights that Detectron2 loads by exact name; compare their maps with the original."""
    from sslbench.config import build
    from transfer.convert import Convert, ConvertConfig

    with errors_in_one_paragraph():
        inputs = {"checkpoint": checkpoint}
        if rescale_to is not None:
            inputs["anchor"] = rescale_to
            anchor_branch = "online" if anchor_branch is None else anchor_branch
        table = {"layout": layout, "branch": branch}
        table |= {"rescale": rescale, "anchor_branch": anchor_branch}
        stage = Convert(build(ConvertConfig, table, where="the command line"))
        folder, made = run_standalone(stage, inputs=inputs, data=DataRoots(Path(".")), out=out)
    parity = json.loads((folder / made["parity"]).read_text())
    for level, found in parity["levels"].items():
        print(f"{level}  max|a-b| / max|original| = {found['relative']:.1e}")
    print(f"compared with {parity['reference']}; at most {parity['tolerance']:g} is allowed")
    _print_drift(parity)
    print(folder / made["weights"])


def _print_drift(parity: dict[str, Any]) -> None:
    if "drift" not in parity:
        return
    factors = [layer["factor"] for layer in parity["rescale"]["layers"].values()]
    print(f"weight norms times {min(factors):.3g} to {max(factors):.3g}; drift from the original:")
    for level, found in parity["drift"]["levels"].items():
        largest, rms = found["relative_max"], found["relative_rms"]
        large = "  LARGE" if rms > parity["drift"]["warned_above"] else ""
        print(f"{level}  largest {largest:.1e}  RMS {rms:.1e}{large}")


@app.command()
def verify(
    weights: Annotated[Path, typer.Argument(help="converted by anybody: .pkl, .pth, .safetensors")],
    against: Annotated[
        Path | None, typer.Option(help="checkpoint that the weights were made from")
    ] = None,
    branch: Branch = "online",
    config: Annotated[
        str | None, typer.Option(help="Detectron2 YAML that the weights will be trained with")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="open pickles of others; nothing in them is run")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON record")] = False,
) -> None:
    """Compare weights with their checkpoint, and name each setting of a YAML that would hurt."""
    with errors_in_one_paragraph():
        from transfer.verify import verify as compared

        found = compared(
            weights, against=against, branch=branch, config=config, allow_pickle=allow_pickle
        )
    print(json.dumps(found.record(), indent=2) if as_json else "\n".join(found.lines()))
    raise typer.Exit(0 if found.passed else 1)


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="name in configs/transfer, or a path to a .toml")],
    weights: Annotated[Path, typer.Option(help="weights.pkl written by convert")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as seed=1 or set.SOLVER.MAX_ITER=90")
    ] = None,
    data: Annotated[Path, typer.Option(help="where data sets lie")] = Path("data"),
    out: Out = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="loader processes")] = 0,
) -> None:
    """Fine-tune a detector from converted weights and evaluate it."""
    from sslbench.results import read_results
    from transfer.detection import Detection
    from transfer.task import load_task

    with errors_in_one_paragraph():
        stage = Detection(load_task(task, overrides or ()))
        folder, made = run_standalone(
            stage,
            inputs={"weights": weights},
            data=DataRoots(data),
            out=out,
            device=device,
            num_workers=workers,
        )
    for row in read_results(folder / made["results"]):
        value = "not evaluated" if row.value is None else f"{row.value:.2f} {row.unit}"
        print(f"{row.key}  {value}  ({row.engine})")
    print(folder / made["results"])


@app.command()
def inspect(checkpoint: Checkpoint) -> None:
    """Say what a checkpoint is: format, branches, depth, width, hash."""
    with errors_in_one_paragraph():
        found = _inspect(checkpoint)
    print(json.dumps(found, indent=2))


def _inspect(path: Path) -> dict[str, Any]:
    from sslbench import checkpoint
    from transfer.weights import is_weights, load_weights, weights_digest

    if not is_weights(path):
        return checkpoint.inspect(path)
    model, metadata = load_weights(path)
    return {"path": str(path), "tensors": len(model), "digest": weights_digest(model), **metadata}


if __name__ == "__main__":
    app()
