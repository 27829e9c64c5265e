"""Reading a user's Detectron2 YAML with the files its ``_BASE_`` names, as Detectron2 would.

Every value keeps the file that set it, so that a finding can say where to mend it.
"""

import difflib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from transfer.detectron2_names import config_keys
from transfer.engines.recipe import DEFAULTS, FIXED, decoded, flatten
from transfer.task import has_detectron2
from transfer.verify.findings import VerifyError

BASE = "_BASE_"
ZOO_SCHEMES = ("detectron2://", "model_zoo://")
# Detectron2's defaults (detectron2/config/defaults.py) of what is checked here and not elsewhere.
MORE_DEFAULTS: dict[str, Any] = {
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (False, False, False, False),
    "MODEL.RESNETS.DEFORM_MODULATED": False,
}
# What is read of a YAML here; the types of other values are Detectron2's own business.
USED = frozenset(
    {
        *MORE_DEFAULTS,
        *(f"MODEL.{name}" for name in ("PIXEL_MEAN", "PIXEL_STD", "MASK_ON")),
        *(f"MODEL.BACKBONE.{name}" for name in ("NAME", "FREEZE_AT")),
        *(f"MODEL.RESNETS.{name}" for name in ("DEPTH", "NORM", "STRIDE_IN_1X1", "NUM_GROUPS")),
        *(f"MODEL.RESNETS.{name}" for name in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS")),
        "MODEL.RESNETS.OUT_FEATURES",
        "MODEL.RESNETS.WIDTH_PER_GROUP",
        *(f"MODEL.{head}.NORM" for head in ("FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")),
        "MODEL.ROI_HEADS.NAME",
        "INPUT.FORMAT",
        "TEST.PRECISE_BN.ENABLED",
    }
)


class _Loader(yaml.SafeLoader):
    """Plain values only; what is written in Python stands as ``Unread`` and is not evaluated."""


@dataclass(frozen=True)
class Unread:
    """A value with a tag of Python, as Detectron2's RetinaNet recipes have for their anchors."""

    tag: str


def _unread(loader: _Loader, suffix: str, node: yaml.Node) -> Unread:
    return Unread(f"!!python/{suffix}")


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _unread)


@dataclass(frozen=True)
class Chain:
    """The merged values of a YAML over Detectron2's defaults: ``chain["INPUT.FORMAT"]``."""

    path: Path
    given: Mapping[str, Any]  # dotted keys
    origins: Mapping[str, Path]  # which file set each

    def __getitem__(self, key: str) -> Any:
        return self.given[key] if key in self.given else default(key)

    def where(self, key: str) -> str:
        origin = self.origins.get(key)
        return f"in {origin.name}" if origin else "Detectron2's default"


def default(key: str) -> Any:
    """Detectron2's own value of a key."""
    if key in MORE_DEFAULTS:
        return MORE_DEFAULTS[key]
    return FIXED[key][0] if key in FIXED else DEFAULTS[key]


def read_chain(name: str) -> Chain:
    """Read a YAML by its path, or by its name in the model zoo where Detectron2 is installed.

    Raises:
        VerifyError: file and key that Detectron2 could not take either.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        path = _in_zoo(name) or path
    given: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    for origin, table in _files(path, ()):
        for key, value in _leaves(origin, table):
            given[key], origins[key] = value, origin
    return Chain(path, given, origins)


def _files(path: Path, seen: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a file's bases, then the file: what comes later wins."""
    path = path.resolve()
    if path in seen:
        raise VerifyError(
            f"{path}: its {BASE} comes back to the file itself by way of {seen[-1].name}; "
            "remove one of them"
        )
    table = _read(path, seen)
    base = table.pop(BASE, [])
    bases = base if isinstance(base, list) else [base]
    for one in bases:
        if not isinstance(one, str):
            raise VerifyError(f"{path}: {BASE} must be a path or a list of paths, got {one!r}")
        yield from _files(_resolved(one, path), (*seen, path))
    yield path, table


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        table = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        named = f" (named as {BASE} by {seen[-1]})" if seen else ""
        hint = "" if seen or has_detectron2() else "; names of the model zoo need Detectron2"
        raise VerifyError(f"{path}: no such file{named}{hint}") from None
    except OSError as error:
        raise VerifyError(f"{path} is not readable: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise VerifyError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(table, dict):
        raise VerifyError(
            f"{path} must hold a table of Detectron2's keys, got {type(table).__name__}"
        )
    return table


def _resolved(base: str, owner: Path) -> Path:
    if "://" in base:
        found = _in_zoo(base) if base.startswith(ZOO_SCHEMES) else None
        if found is None:
            needs = "" if has_detectron2() else " and Detectron2, which may know it, is missing"
            raise VerifyError(
                f"{owner}: {BASE} {base!r} cannot be resolved: nothing is downloaded here{needs}. "
                "Copy that file beside this one and write its name"
            )
        return found
    return owner.parent / Path(base).expanduser()


def _in_zoo(name: str) -> Path | None:
    """A recipe that comes with Detectron2, if it is installed and has it."""
    if not has_detectron2():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside Detectron2
        from detectron2 import model_zoo

    for scheme in ZOO_SCHEMES:
        name = name.removeprefix(scheme)
    try:
        return Path(model_zoo.get_config_file(name))
    except RuntimeError:  # its word for a name that it does not know
        return None


def _leaves(path: Path, table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    known = config_keys()
    _require_texts(path, table, "")
    for key, value in flatten(decoded(table)):
        if any(other.startswith(f"{key}.") for other in known):
            raise VerifyError(
                f"{path}: {key} must hold a table of settings, got {value!r}. Write its settings "
                f"below it, as {min(k for k in known if k.startswith(f'{key}.'))}"
            )
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise VerifyError(
                f"{path}: {key} is no key of Detectron2's configuration, whose get_cfg() refuses "
                f"it.{meant} If your own train_net adds it, verify a copy without it"
            )
        yield key, _checked(path, key, value)


def _require_texts(path: Path, table: Mapping[Any, Any], prefix: str) -> None:
    for key, value in table.items():
        if not isinstance(key, str):
            raise VerifyError(f"{path}: the key {key!r} below {prefix or 'the top'} is no text")
        if isinstance(value, Mapping):
            _require_texts(path, value, f"{prefix}{key}.")


def _checked(path: Path, key: str, value: Any) -> Any:
    """Refuse a value of another type than Detectron2's default, as it does itself."""
    if key not in USED:
        return value
    expected = default(key)
    if isinstance(value, Unread):
        raise VerifyError(f"{path}: {key} is {value.tag}, which is not evaluated; write its value")
    if not _same_type(value, expected):
        raise VerifyError(
            f"{path}: {key} must be {_kind(expected)} as Detectron2's default {expected!r}, "
            f"got {value!r}"
        )
    if key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD") and not _three_numbers(value):
        raise VerifyError(f"{path}: {key} must be three numbers, got {value!r}")
    return value


def _same_type(value: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return type(value) in (int, float)
    return type(value) is type(expected)


def _kind(expected: Any) -> str:
    names = {bool: "True or False", int: "a whole number", str: "a text", tuple: "a list"}
    return names.get(type(expected), "a number")


def _three_numbers(value: tuple[Any, ...]) -> bool:
    return len(value) == 3 and all(type(v) in (int, float) for v in value)
