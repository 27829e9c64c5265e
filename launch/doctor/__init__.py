"""``launch doctor``: is all there that a suite, or a data set, needs? Nothing is run or written."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from launch.doctor.checks import Check, check
from launch.doctor.layout import EXPECTED, tree
from launch.doctor.machine import machine_lines
from launch.graph import data_needs
from launch.site import SiteConfig, data_roots
from launch.suite import DataDefaults, find_suite, load_suite
from launch.tables import print_table
from sslbench.config import ConfigError
from sslbench.datasets import DataError, DataRoots, is_data_spec, layout_of, locate, parse_spec
from sslbench.datasets.official import OFFICIAL

# What the tasks read; train and val of VOC are parts of trainval.
USUAL = tuple(
    spec
    for spec in OFFICIAL
    if spec not in {"voc2007/train", "voc2007/val", "voc2012/train", "voc2012/val"}
)


def wanted_specs(names: Sequence[str]) -> tuple[str, ...]:
    """Turn suites, data sets, splits and paths of images into what is to be looked at.

    Raises:
        ConfigError: a name is none of these, or a suite's config is wrong.
    """
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(_specs_of(name))
    return tuple(found)


def _is_data(name: str) -> bool:
    is_path = Path(name).exists() and not name.endswith(".toml")
    return name in EXPECTED or is_data_spec(name) or is_path


def _specs_of(name: str) -> Iterable[str]:
    if name in EXPECTED:
        return [spec for spec in USUAL if parse_spec(spec)[0] == name]
    if _is_data(name):
        return [name]
    try:
        find_suite(name)
    except ConfigError as error:
        raise ConfigError(f"{error}; data sets are {', '.join(EXPECTED)}") from None
    return data_needs(load_suite(name))


def data_of(names: Sequence[str], site: SiteConfig, given: Sequence[str]) -> DataRoots:
    """Say where to look: as the first named suite would, so that one on its own data finds them."""
    wanted_specs(names)  # a name that is nothing is answered before a suite is looked for
    suites = [name for name in names if not _is_data(name)]
    defaults = load_suite(suites[0]).data if suites else DataDefaults()
    return data_roots(defaults, site, given)


def examine(names: Sequence[str], roots: DataRoots, sample: int, console: Console) -> bool:
    """Print what is found; return whether all that was asked for can be used.

    Without a name every data set is looked at, and one that is missing is no fault.
    """

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    for line in (*machine_lines(), *_root_lines(roots), ""):
        say(line)
    checks = []
    for spec in wanted_specs(names) or USUAL:
        with console.status(f"reading {spec}"):
            checks.append(check(spec, roots, sample))
    _print_checks(checks, console)
    for line in _remarks(checks):
        say(line)
    for dataset in _incomplete(checks, roots):
        say(f"\n{dataset} is expected as")
        for line in tree(dataset, roots):
            say(f"  {line}")
    bad = [item for item in checks if not item.is_usable and (names or item.state == "broken")]
    if bad:
        say(
            f"\n{len(bad)} of {len(checks)} are missing or broken: {', '.join(c.spec for c in bad)}"
        )
    return not bad


def _root_lines(roots: DataRoots) -> list[str]:
    own = [f"          {name} from {folder}" for name, folder in roots.overrides.items()]
    return [f"data      {roots.root} (from {roots.source})", *own]


def _print_checks(checks: Sequence[Check], console: Console) -> None:
    rows = []
    for item in checks:
        decoded = f"{item.num_decoded} decoded" if item.num_decoded else ""
        rows.append([item.spec, item.state, item.counts, decoded, item.content_id])
    print_table(console, ["data", "state", "holds", "sample", "content id"], rows)


def _remarks(checks: Sequence[Check]) -> list[str]:
    """Notes and faults; what several splits have in common is said once."""
    said: dict[str, list[str]] = {}
    for item in checks:
        for text in (*item.notes, *item.faults):
            said.setdefault(text, []).append(item.spec)
    lines = [f"{', '.join(specs)}: {text}" for text, specs in said.items()]
    if any(item.content_id for item in checks):
        lines.append(
            "compared are counts, of VOC2007 the lists of images and of COCO the hashes of the "
            "annotations too; the content id says whether two machines have the same"
        )
    return lines


def _incomplete(checks: Sequence[Check], roots: DataRoots) -> list[str]:
    """Data sets of which something is missing or broken, and COCO where LVIS lacks its images."""
    bad = [item.spec for item in checks if not item.is_usable and is_data_spec(item.spec)]
    found = dict.fromkeys(parse_spec(spec)[0] for spec in bad)
    if any(layout_of(name).family == "lvis" for name in found):
        try:
            locate("coco2017", roots)
        except DataError:
            found["coco2017"] = None
    return list(found)
