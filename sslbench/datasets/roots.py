"""Where data sets lie: a data root, the usual layouts below it, and names ``data set/split``.

A name may end in what is read of the split, as ``coco2017/train:images``; see ``PARTS``.
"""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

MAX_NAMES_SHOWN = 8
ENVIRONMENT = "DETECTRON2_DATASETS"  # where Detectron2 looks for its data sets
DEFAULT_ROOT = Path("data")

# What may be read of a split: images and instances, the images alone, images with image-level
# labels, or images with PNGs of segments.
PARTS = ("all", "images", "labels", "segments")


class DataError(ValueError):
    """Data that is missing, unreadable or contradicts itself; the message says the way out."""


@dataclass(frozen=True)
class Layout:
    """How one data set is laid out on disk."""

    family: Literal["voc", "coco", "lvis"]
    folders: tuple[str, ...]  # below the data root, in the order they are tried
    markers: tuple[str, ...]  # the folder is taken if it holds one of these


LAYOUTS: Mapping[str, Layout] = {
    "voc2007": Layout(
        "voc",
        ("VOCdevkit/VOC2007", "VOC2007", "voc/VOCdevkit/VOC2007", "."),
        ("JPEGImages",),
    ),
    # No ".": one folder of pictures must not pass for two data sets.
    "voc2012": Layout(
        "voc", ("VOCdevkit/VOC2012", "VOC2012", "voc/VOCdevkit/VOC2012"), ("JPEGImages",)
    ),
    "coco2017": Layout(
        "coco", ("coco", "coco2017", "COCO", "."), ("annotations", "train2017", "val2017")
    ),
    "lvis_v1": Layout(
        "lvis",
        ("lvis", "lvis_v1", "lvis/annotations", "lvis_v1/annotations", "coco/annotations", "."),
        ("lvis_v1_train.json", "lvis_v1_val.json"),
    ),
    "lvis_v05": Layout(
        "lvis",
        ("lvis", "lvis_v0.5", "lvis/annotations", "lvis_v0.5/annotations", "coco/annotations", "."),
        ("lvis_v0.5_train.json", "lvis_v0.5_val.json"),
    ),
}


@dataclass(frozen=True)
class DataRoots:
    """Folders to search for data sets.

    Args:
        overrides: data set name -> its own root, for sets that lie elsewhere; either the set's
            folder or one above.
        source: who named the root, for messages: ``--data``, DETECTRON2_DATASETS, a site file.
    """

    root: Path
    overrides: Mapping[str, Path] = field(default_factory=dict, hash=False)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        overrides = {name: Path(path) for name, path in self.overrides.items()}
        object.__setattr__(self, "overrides", overrides)
        for name in overrides:
            layout_of(name)

    def of(self, dataset: str) -> Path:
        """Return the folder below which ``dataset`` is searched."""
        return self.overrides.get(dataset, self.root).expanduser()

    def source_of(self, dataset: str) -> str:
        """Say who named the folder of ``dataset``."""
        return "its own root" if dataset in self.overrides else self.source

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; ``from_json`` takes them back."""
        overrides = {name: str(path) for name, path in self.overrides.items()}
        return {"root": str(self.root), "overrides": overrides, "source": self.source}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Self:
        """Rebuild what ``to_json`` returned."""
        return cls(Path(payload["root"]), payload["overrides"], payload.get("source", ""))

    @classmethod
    def given(cls, items: Sequence[str] = (), otherwise: Self | None = None) -> Self:
        """Take what a user typed as ``--data``: ``/datasets``, ``voc2007=/x`` or several of both.

        A folder for all data sets replaces everything that was set before; a folder of one data
        set leaves the others where they were.

        Args:
            otherwise: roots where none is typed; by default those of the environment.

        Raises:
            DataError: two folders for the same data set, or an unknown data set.
        """
        tops = [item for item in items if not _names_a_set(item)]
        own: dict[str, Path] = {}
        for item in items:
            if item not in tops:
                name, _, path = item.partition("=")
                if name in own:
                    raise DataError(f"--data gives {name} twice: {own[name]} and {path}; drop one")
                own[name] = _absolute(path)
        if len(tops) > 1:
            raise DataError(
                f"--data gives two folders for all data sets, {tops[0]} and {tops[1]}; drop one, "
                f"or say which set the second holds: --data voc2007={tops[1]}"
            )
        if tops:
            return cls(_absolute(tops[0]), own, "--data")
        base = otherwise or cls.of_environment()
        return cls(base.root, {**base.overrides, **own}, base.source)

    @classmethod
    def of_environment(cls) -> Self:
        """Take the root from DETECTRON2_DATASETS where it is set, else ``data``."""
        named = os.environ.get(ENVIRONMENT, "")
        if named.strip():
            return cls(_absolute(named), source=ENVIRONMENT)
        return cls(_absolute(str(DEFAULT_ROOT)), source="the default")


def _absolute(path: str) -> Path:
    return Path(path).expanduser().resolve()


def _names_a_set(item: str) -> bool:
    """Tell ``voc2007=/x`` from a folder, in whose name an equals sign may stand too.

    Raises:
        DataError: what stands before the equals sign is no data set and the whole is no folder.
    """
    name, equals, path = item.partition("=")
    if not equals or "/" in name or Path(item).expanduser().exists():
        return False
    layout_of(name)
    if not path.strip():
        raise DataError(f"--data {item}: give the folder of {name} after the equals sign")
    return True


def layout_of(dataset: str) -> Layout:
    """Return the layout of a known data set.

    Raises:
        DataError: the name is unknown; the nearest one is suggested.
    """
    if dataset not in LAYOUTS:
        near = difflib.get_close_matches(dataset.lower(), LAYOUTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"unknown data set {dataset!r}; {hint}known: {', '.join(LAYOUTS)}")
    return LAYOUTS[dataset]


def is_data_spec(text: str) -> bool:
    """Tell ``voc2007/test`` from a path; write ``./voc2007/test`` for a folder of that name."""
    dataset, slash, split = text.partition(":")[0].partition("/")
    return dataset in LAYOUTS and slash == "/" and "/" not in split.rstrip("/")


def parse_spec(spec: str) -> tuple[str, str]:
    """Split ``voc2007/test`` into data set and split, which is checked where it is looked up."""
    spec_part(spec)
    dataset, _, split = spec.partition(":")[0].partition("/")
    layout_of(dataset)
    if not split or "/" in split:
        raise DataError(
            f"data spec {spec!r} must look like {dataset}/train: data set, slash, split"
        )
    return dataset, split


def spec_part(spec: str) -> str:
    """Return what a spec reads of its split: ``images`` of ``coco2017/train:images``."""
    _, colon, part = spec.partition(":")
    if not colon:
        return "all"
    if part not in PARTS:
        raise DataError(f"data spec {spec!r} ends in {part!r}; it may end in {', '.join(PARTS)}")
    return part


def only(part: str, spec: str) -> str:
    """Narrow a data spec to the part that is read of it; a path of images stays as it is."""
    if not is_data_spec(spec):
        return spec
    dataset, split = parse_spec(spec)
    return f"{dataset}/{split}:{part}"


def locate(dataset: str, roots: DataRoots) -> Path:
    """Find the folder of a data set.

    Raises:
        DataError: not found; names everything that was looked for, where, and what to do.
    """
    layout = layout_of(dataset)
    top = roots.of(dataset)
    tried = []
    folders = layout.folders
    if dataset in roots.overrides and "." not in folders:
        folders = (*folders, ".")
    for folder in folders:
        candidate = top if folder == "." else top / folder
        if any((candidate / marker).exists() for marker in layout.markers):
            return candidate
        why = f"has no {' or '.join(layout.markers)}" if candidate.is_dir() else "does not exist"
        tried.append(f"  {candidate}  ({why})")
    raise DataError(
        f"data set {dataset!r} not found below {top}{_named_by(dataset, roots)}, "
        f"which {_describe(top)}. Looked for:\n"
        + "\n".join(tried)
        + f"\nPoint the data root (DATA=... or {ENVIRONMENT}) at the folder that holds "
        f"{folders[0]}, give this set its own (--data {dataset}=FOLDER), "
        "or make the small built-in sets: python -m sslbench.scenes --out NEW_FOLDER"
    )


def _named_by(dataset: str, roots: DataRoots) -> str:
    source = roots.source_of(dataset)
    return f" (from {source})" if source else ""


def unknown_split(dataset: str, split: str, available: Iterable[str], where: Path) -> DataError:
    """Build the error for a split that ``where`` does not have."""
    splits = sorted(available)
    near = difflib.get_close_matches(split, splits, n=1)
    hint = f"; did you mean '{dataset}/{near[0]}'?" if near else ""
    listed = ", ".join(splits) or "none"
    return DataError(f"{dataset} has no split {split!r} in {where}; available: {listed}{hint}")


def shorten(names: Iterable[object]) -> str:
    """List the first few names and count the rest."""
    listed = [str(name) for name in names]
    rest = len(listed) - MAX_NAMES_SHOWN
    return ", ".join(listed[:MAX_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _describe(folder: Path) -> str:
    if not folder.exists():
        return "does not exist"
    if not folder.is_dir():
        return "is a file, not a folder"
    inside = sorted(entry.name for entry in folder.iterdir())
    return f"holds {shorten(inside)}" if inside else "is an empty folder"
