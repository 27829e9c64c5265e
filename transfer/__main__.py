"""python -m transfer convert|verify|run|evaluate|inspect: from a checkpoint to weights to numbers.

    python -m transfer inspect moco_v2.pth
    python -m transfer convert moco_v2.pth --layout c4 --out runs/moco_c4
    python -m transfer convert moco_v2.pth --layout fpn --out moco_fpn.pth
    python -m transfer convert moco_fpn.pth --layout torchvision --out moco.safetensors
    python -m transfer convert runs/pretrain/cyborgs-0123456789ab --layout fpn
    python -m transfer verify runs/moco_c4/weights.pkl --against moco_v2.pth --config my.yaml
    python -m transfer run voc0712_det --weights runs/moco_c4/weights.pkl --data /data
    python -m transfer run coco_fpn --weights fpn.pkl --data coco2017=/fast/coco --strict
    python -m transfer evaluate coco_fpn --predictions coco_instances_results.json --data /data

Every command continues what was interrupted, and does nothing where it is already done.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sslbench import dist
from sslbench.command import Data, errors_in_one_paragraph, require_place
from sslbench.datasets import DataRoots
from sslbench.files import read_json
from sslbench.stage import run_standalone

if TYPE_CHECKING:
    from transfer.convert import Convert
    from transfer.evaluate import Scored

app = typer.Typer(
    help="Convert checkpoints to detector weights and fine-tune detectors from them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Checkpoint = Annotated[Path, typer.Argument(help="file of any known code base")]
Branch = Annotated[str, typer.Option(help="online, target, or the prefix in front of conv1.weight")]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="open pickles of others; nothing that they name is called"),
]
Out = Annotated[Path | None, typer.Option(help="run folder; default runs/KIND/...")]


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint, weights, or a folder of several")],
    layout: Annotated[
        Literal["c4", "fpn", "torchvision"], typer.Option(help="kind of detector, or plain names")
    ],
    branch: Branch = "online",
    format: Annotated[
        Literal["pkl", "pth", "safetensors"] | None,
        typer.Option(help="default pkl for a detector, pth for torchvision"),
    ] = None,
    allow_pickle: AllowPickle = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="run folder, or a file .pkl, .pth, .safetensors; default runs/convert/.."
        ),
    ] = None,
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
    """Write weights that load by exact name; compare their maps with the original's."""
    from transfer.convert import Convert, as_asked

    with errors_in_one_paragraph():
        if rescale_to is not None:
            anchor_branch = "online" if anchor_branch is None else anchor_branch
        table: dict[str, Any] = {"layout": layout, "branch": branch, "format": format}
        table |= {"rescale": rescale, "anchor_branch": anchor_branch}
        config, out, is_file = as_asked(table, out)
        stage = Convert(config, allow_pickle)
        anchor = {} if rescale_to is None else {"anchor": rescale_to}
        if checkpoint.is_dir():
            _convert_folder(checkpoint, anchor, stage, out, is_file)
            return
        inputs = {"checkpoint": checkpoint, **anchor}
        weights, record = _convert_one(inputs, stage, out, is_file)
        parity = read_json(record)
    for level, found in parity["levels"].items():
        print(f"{level}  max|a-b| / max|original| = {found['relative']:.1e}")
    print(f"compared with {parity['reference']}; at most {parity['tolerance']:g} is allowed")
    _print_drift(parity)
    for note in parity.get("metadata", {}).get("notes", ()):
        print(f"note: {note}")
    print(weights)


def _convert_one(
    inputs: dict[str, Path], stage: "Convert", out: Path | None, is_file: bool
) -> tuple[Path, Path]:
    from transfer.convert import convert_to_file, convert_to_folder

    if out is not None and is_file:
        return out, convert_to_file(stage, inputs, out)
    folder, made = convert_to_folder(stage, inputs, out)
    return folder / made["weights"], folder / made["parity"]


def _convert_folder(
    folder: Path, anchor: dict[str, Path], stage: "Convert", out: Path | None, is_file: bool
) -> None:
    from sslbench.stage import artifacts
    from transfer.batch import checkpoints_in, convert_each

    if is_file:
        raise ValueError(f"--out {out} is one file, {folder} holds several; give a folder")
    checkpoints = checkpoints_in(folder)
    out = out or Path("runs") / stage.kind / f"{folder.resolve().name}-{stage.label}"
    require_place("--out", out, is_folder=True)
    num_failed = 0
    for done in convert_each(stage, checkpoints, anchor, out):
        if done.state == "failed":
            num_failed += 1
            print(f"{done.checkpoint.name}  failed: {done.reason}", flush=True)
            continue
        made = artifacts(done.folder)
        levels = read_json(done.folder / made["parity"])["levels"].values()
        worst = max(level["relative"] for level in levels)
        weights = done.folder / made["weights"]
        print(f"{done.checkpoint.name}  {done.state}  {worst:.1e}  {weights}", flush=True)
    if num_failed:
        raise ValueError(f"{num_failed} of {len(checkpoints)} checkpoints were not converted")


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
    weights: Annotated[Path, typer.Option(help="file written by convert")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as seed=1 or set.SOLVER.MAX_ITER=90")
    ] = None,
    data: Data = None,
    out: Out = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="loader processes")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="refuse whatever departs from the published protocol")
    ] = False,
) -> None:
    """Fine-tune a detector from converted weights and evaluate it."""
    from sslbench.results import read_results
    from transfer.detection import Detection
    from transfer.protocol import require_protocol
    from transfer.task import load_task

    with errors_in_one_paragraph():
        if out is not None:
            require_place("--out", out, is_folder=True)
        demanded = ["strict=true"] if strict else []
        stage = Detection(load_task(task, [*(overrides or ()), *demanded]))
        folder, made = run_standalone(
            stage,
            inputs={"weights": weights},
            data=DataRoots.given(data or ()),
            out=out,
            device=device,
            num_workers=workers,
        )
        results = read_results(folder / made["results"])
        if stage.config.strict:  # a finished folder was perhaps not made so
            require_protocol(stage.config, results, folder)
    if not dist.is_main():
        return
    for row in results:
        value = "not evaluated" if row.value is None else f"{row.value:.2f} {row.unit}"
        print(f"{row.key}  {value}  ({row.engine})")
    print(folder / made["results"])


@app.command()
def evaluate(
    task: Annotated[str, typer.Argument(help="name in configs/transfer, or a path to a .toml")],
    predictions: Annotated[Path, typer.Option(help="COCO's result format, of any code base")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as test=coco2017/train or seed=1")
    ] = None,
    data: Data = None,
    evaluator: Annotated[
        Literal["default", "reference"] | None,
        typer.Option(help="reference: pycocotools or lvis, slowly; the task's own if not given"),
    ] = None,
    only: Annotated[
        Literal["box", "mask"] | None,
        typer.Option(help="of a file that holds boxes, or masks, alone"),
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="print every class")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file of the results")] = None,
) -> None:
    """Score a predictions file on a task's test split; it may come from another code base."""
    from transfer.evaluate import evaluate_file
    from transfer.task import load_task

    with errors_in_one_paragraph():
        if out is not None:
            require_place("--out", out)
        chosen = [f"evaluator={evaluator}"] if evaluator else []
        config = load_task(task, [*(overrides or ()), *chosen])
        roots = DataRoots.given(data or ())
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        scored = evaluate_file(config, predictions, roots, only)
        _print_scored(scored, per_class)  # before the disk can fail
        if out is not None:
            scored.write(out)
            print(out)


def _print_scored(scored: "Scored", per_class: bool) -> None:
    if per_class:
        for row in scored.evaluation.classes:
            name, _, *values = row.items()
            print(f"{name[1]}  {'  '.join(f'{key} {_shown(value)}' for key, value in values)}")
    for result in scored.results:
        print(f"{result.key}  {_shown(result.value)}")
    for note in scored.results[0].footnotes:
        print(f"note: {note}")
    print(f"evaluated with {scored.evaluation.evaluator}", flush=True)


def _shown(value: float | None) -> str:
    return "not evaluated" if value is None else f"{value:.2f}"


@app.command()
def inspect(checkpoint: Checkpoint, allow_pickle: AllowPickle = False) -> None:
    """Say what a checkpoint is: format, branches, depth, width, hash."""
    with errors_in_one_paragraph():
        found = _inspect(checkpoint, allow_pickle)
    print(json.dumps(found, indent=2))


def _inspect(path: Path, allow_pickle: bool) -> dict[str, Any]:
    from sslbench import checkpoint
    from transfer.trunks import read_trunk
    from transfer.weights import is_weights

    if not is_weights(path):
        return checkpoint.inspect(path, allow_pickle)
    trunk, metadata = read_trunk(path, "online", allow_pickle)
    digest = checkpoint.state_digest(trunk.state)
    return {"path": str(path), "tensors": len(trunk.state), "digest": digest, **metadata}


if __name__ == "__main__":
    app()
