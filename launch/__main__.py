"""python -m launch plan|run|status|report SUITE [key=value ...]: a suite on this machine.

``python -m launch doctor [SUITE or data set ...]`` looks over the data that it needs.
"""

import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from launch.graph import Missing, PlannedStage, require_protocols, select, survey
from launch.site import SiteConfig, data_roots, load_site
from launch.state import clock, read_states
from launch.suite import Suite, load_suite, with_checkpoint, with_overrides
from launch.tables import branches, print_table
from sslbench.command import INTERRUPTED, Data
from sslbench.datasets import DataRoots
from sslbench.files import disk_errors_named

MAX_PLACES = 6  # named of those that lack the same data

app = typer.Typer(
    help="Plan, run and report a suite: rows (backbones) x tasks x seeds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SuiteArgument = Annotated[str, typer.Argument(help="name in configs/suites, or a path to a .toml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.sub=value items for the pretraining config")
]
Runs = Annotated[Path | None, typer.Option(help="run folder (default: the site's)")]
Site = Annotated[Path | None, typer.Option(help="site file (default: configs/site/local.toml)")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="evaluate this checkpoint in the place of pretraining")
]
Branch = Annotated[
    str, typer.Option(help="trunk within --checkpoint: online, target, or a prefix of its keys")
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="task or stage kind, with all it builds on; may be repeated"),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="refuse tasks that depart from their published protocols")
]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


@dataclass(frozen=True)
class Planned:
    """A suite laid out on this machine."""

    suite: Suite
    site: SiteConfig
    roots: DataRoots
    runs: Path
    stages: list[PlannedStage]
    chosen: list[PlannedStage]  # narrowed by --only
    missing: list[Missing]  # asked for, but their data are not there


def _plan(
    suite: SuiteArgument,
    overrides: Overrides = None,
    runs: Runs = None,
    site: Site = None,
    data: Data = None,
    checkpoint: Checkpoint = None,
    branch: Branch = "online",
    only: Only = None,
    strict: Strict = False,
) -> Planned:
    site_config = load_site(site)
    chosen = with_checkpoint(load_suite(suite), checkpoint, branch)
    chosen = with_overrides(chosen, overrides or ())
    if strict:
        chosen = chosen.model_copy(update={"strict": True})
    roots = data_roots(chosen.data, site_config, data or ())
    runs_dir = (runs or site_config.runs).expanduser().resolve()
    stages, missing = survey(chosen, roots, runs_dir)
    asked = [item for item in missing if not only or item.tags & set(only)]
    if asked and not stages:
        raise asked[0].error
    names = [name for name in only or () if not any(name in item.tags for item in asked)]
    narrowed = select(stages, names) if names or not only else []
    return Planned(chosen, site_config, roots, runs_dir, stages, narrowed, asked)


def on_a_suite(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options of ``_plan``; it receives the plan in their place."""
    shared = inspect.signature(_plan).parameters
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def with_plan(**options: Any) -> None:
        chosen = {name: options.pop(name) for name in shared}
        command(_plan(**chosen), **options)

    parameters = [*shared.values(), *own]
    with_plan.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_plan.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_plan


@app.command("plan")
@on_a_suite
def plan_command(planned: Planned) -> None:
    """Show the stages of a suite as a tree, with the state of each. Runs nothing."""
    _require_protocols(planned)
    console = Console()
    depths: dict[str, int] = {}
    for stage in planned.chosen:
        depths[stage.name] = max((depths[parent] + 1 for parent in stage.parents), default=0)
    drawn = branches(list(depths.values()))
    lines = [
        [connector + stage.name, state.state, ", ".join(dict.fromkeys(c.row for c in stage.serves))]
        for connector, stage, state in zip(
            drawn, planned.chosen, read_states(planned.chosen), strict=True
        )
    ]
    print_table(console, ["stage", "state", "for"], lines)
    done = sum(line[1] == "done" for line in lines)
    console.print(f"{done} of {len(lines)} stages done; run folder {planned.runs}", soft_wrap=True)
    _say_missing(planned, console)


@app.command()
@on_a_suite
def run(planned: Planned, debug: Debug = False) -> None:
    """Run what is not done yet, continuing what was interrupted; then write the report."""
    from launch.submit import run_locally

    if planned.missing:
        raise planned.missing[0].error
    _require_protocols(planned)
    console = Console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    try:
        outcomes = run_locally(planned.chosen, planned.site, planned.roots, say, debug=debug)
        bad = [outcome for outcome in outcomes if not outcome.is_good]
        if bad:
            say(f"{len(bad)} of {len(outcomes)} stages are not done; mend it, run the same command")
        if any(stage.answers for stage in planned.chosen):
            _report(planned, console)
    except KeyboardInterrupt:
        say("\ninterrupted; run the same command to continue")
        raise typer.Exit(INTERRUPTED) from None
    if bad:
        raise typer.Exit(1)


@app.command()
def doctor(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="suites, data sets (voc2007), splits (coco2017/val) or image folders"),
    ] = None,
    data: Data = None,
    site: Site = None,
    sample: Annotated[int, typer.Option(min=1, help="images of each split to decode")] = 32,
) -> None:
    """Say whether the data are there, whole and official, and how they are expected; runs nothing.

    Exit code 1 if something that was asked for is missing or broken.
    """
    from launch.doctor import data_of, examine

    if not examine(
        names or (), data_of(names or (), load_site(site), data or ()), sample, Console()
    ):
        raise typer.Exit(1)


def _require_protocols(planned: Planned) -> None:
    if planned.suite.strict:
        require_protocols(planned.chosen)


@app.command()
@on_a_suite
def status(
    planned: Planned, as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False
) -> None:
    """Show state, progress and duration of every stage."""
    states = read_states(planned.chosen)
    if as_json:
        typer.echo(json.dumps([state.to_json() for state in states], indent=2))
        return
    headers = ["stage", "state", "time", "attempts", "progress"]
    lines = [[s.name, s.state, clock(s.seconds), str(s.attempts or ""), s.progress] for s in states]
    console = Console()
    print_table(console, headers, lines)
    console.print(f"{sum(s.state == 'done' for s in states)} of {len(states)} stages done")
    _say_missing(planned, console)


def _say_missing(planned: Planned, console: Console) -> None:
    """Name the cells without a stage, and of each reason the first line."""
    reasons: dict[str, list[str]] = {}
    for item in planned.missing:
        reason = str(item.error).splitlines()[0]
        reasons.setdefault(reason, []).extend(cell.place for cell in item.cells)
    for reason, repeated in reasons.items():
        places = list(dict.fromkeys(repeated))  # each seed has the same
        named = ", ".join(places[:MAX_PLACES])
        more = len(places) - MAX_PLACES
        text = f"not planned: {named}{f' and {more} more' if more > 0 else ''}: {reason}"
        console.print(Text(text), soft_wrap=True)


@app.command()
@on_a_suite
def report(planned: Planned) -> None:
    """Write the suite's tables and its page; what is missing is said in its place."""
    console = Console()
    _say_missing(planned, console)
    _report(planned, console)


def _report(planned: Planned, console: Console) -> None:
    from launch.report import write_report

    without_data = {cell for item in planned.missing for cell in item.cells}
    page = write_report(planned.suite, planned.stages, planned.runs, console, without_data)
    console.print(str(page), soft_wrap=True, markup=False, highlight=False)


def main() -> None:
    """Turn an error that the user can mend into one line."""
    try:
        with disk_errors_named():
            app()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
