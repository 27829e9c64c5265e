"""TOML files become frozen pydantic models, strictly.

A file may name one parent with ``extends = "other.toml"`` (relative to itself). Overrides are
TOML too, so ``optimizer.lr=1e-6`` is a float and ``contrast_layers=["layer2"]`` is a list; a bare
word is taken as a string.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

CONFIGS_DIR = Path(__file__).resolve().parent.parent / "configs"


class ConfigError(ValueError):
    """A key or value the user wrote that no config class accepts."""


class NotHashed:
    """Marks a field that is recorded but cannot change a number: ``Annotated[str, NotHashed]``."""


class FrozenConfig(BaseModel):
    """Base of every config: immutable, hashable by value, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def expanded(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Replace shorthand that a user may write by the keys it stands for.

        Raises:
            ValueError: the shorthand is wrong.
        """
        return table


C = TypeVar("C", bound=FrozenConfig)


def load(cls: type[C], path: Path | str, overrides: Iterable[str] = ()) -> C:
    """Read ``path`` into ``cls``, then apply ``key.sub=value`` overrides in order.

    Raises:
        ConfigError: the file, a key or a value is wrong; the message says which and what to do.
    """
    table = read_toml(Path(path))
    apply_overrides(table, overrides)
    return build(cls, table, where=str(path))


def read_toml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Parse one file and lay it over the file it extends, if any."""
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(str(p) for p in (*seen, path))
        raise ConfigError(f"'extends' goes round in a circle: {chain}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_near_files(path)}") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML text file: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    parent = table.pop("extends", None)
    if parent is None:
        return table
    return overlay(read_toml(path.parent / parent, (*seen, path)), table)


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist either)"
    names = sorted(p.name for p in path.parent.glob("*.toml"))
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; the folder has: {', '.join(names)}"


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two tables key by key; ``top`` wins, tables merge, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlay(merged[key], value) if both_tables else value
    return merged


def apply_overrides(table: dict[str, Any], overrides: Iterable[str]) -> None:
    """Write ``key.sub=value`` items into ``table`` in order."""
    for item in overrides:
        dotted, equals, text = item.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(f"override {item!r} must look like key.sub=value")
        assign(table, dotted.strip(), parse_value(text.strip()))


def parse_value(text: str) -> Any:
    """Parse a TOML literal; what is none is a plain string, so paths need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text[:1] in "[{\"'":
            raise ConfigError(f"{text!r} is not a valid TOML value") from None
        return text


def assign(table: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``table["a"]["b"] = value`` for ``dotted = "a.b"``."""
    *parents, leaf = dotted.split(".")
    for name in parents:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {dotted!r}: {name!r} is a value, not a table")
        table = inner
    table[leaf] = value


def build(cls: type[C], table: Mapping[str, Any], where: str) -> C:
    """Validate ``table`` as ``cls``; every problem is named with its key, value and remedy."""
    try:
        # strict JSON mode: true is no float and "3" no int, yet arrays fill tuples
        tagged = _fill_tags(cls, cls.expanded(table))
        return cls.model_validate_json(json.dumps(tagged, default=str), strict=True)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(cls, item)}" for item in error.errors())
        raise ConfigError(f"{where}:\n{problems}") from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _fill_tags(cls: type[BaseModel], table: Mapping[str, Any]) -> dict[str, Any]:
    """Let ``optimizer.lr=0.2`` mean the default optimizer: put the default member's tag in."""
    filled = dict(table)
    for name, field in cls.model_fields.items():
        inner, tag = filled.get(name), field.discriminator
        if (
            isinstance(inner, dict)
            and isinstance(tag, str)
            and isinstance(field.default, BaseModel)
        ):
            filled[name] = {tag: getattr(field.default, tag), **inner}
    return filled


def _describe(cls: type[BaseModel], item: Any) -> str:
    location, owner = _locate_key(cls, item["loc"])
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_suggest(cls, owner, location)}"
    if item["type"] == "missing":
        return f"key {key!r} is required and missing"
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
    return f"{key or 'config'}: {message}{shown}"


def _locate_key(
    cls: type[BaseModel], location: Iterable[str | int]
) -> tuple[list[str], type[BaseModel]]:
    """The key as a user writes it, and the model it was looked for in.

    Pydantic also puts the tag of a union's member into the location; nobody writes that.
    """
    owner, parts = cls, []
    members: dict[Any, type[BaseModel]] = {}
    for part in location:
        if part in members:
            owner, members = members[part], {}
            continue
        parts.append(str(part))
        field = owner.model_fields.get(str(part))
        inner = _models_in(field.annotation) if field else []
        if field and isinstance(field.discriminator, str):
            members = {m.model_fields[field.discriminator].default: m for m in inner}
        elif inner:
            owner = inner[0]
    return parts, owner


def _suggest(cls: type[BaseModel], owner: type[BaseModel], location: list[str]) -> str:
    *parents, wrong = location
    prefix = "".join(f"{part}." for part in parents)
    siblings = list(owner.model_fields)
    if near := difflib.get_close_matches(wrong, siblings, n=1):
        return f"did you mean {prefix + near[0]!r}?"
    elsewhere = [k for k in _known_keys(cls) if k.rpartition(".")[2] == wrong]
    own = [k for k in elsewhere if k.startswith(prefix) and prefix]
    if elsewhere and not own:
        return f"did you mean {elsewhere[0]!r}?"
    return f"known: {', '.join(sorted(siblings))}"


def _known_keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        for model in _models_in(field.annotation):
            keys += _known_keys(model, f"{prefix}{name}.")
    return keys


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]


def departures(config: BaseModel) -> dict[str, Any]:
    """The fields that differ from their defaults, nested, without the ``NotHashed`` ones.

    Hashing only these lets a new key with a neutral default appear without orphaning finished runs.
    Changing a default therefore needs a ``version`` bump of the stage.
    """
    table: dict[str, Any] = json.loads(config.model_dump_json(exclude_defaults=True))
    for name in _not_hashed(type(config)):
        table.pop(name, None)
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel) and name in table:
            table[name] = departures(value) | _tag(value, field.default)
            if not table[name]:  # only NotHashed keys differ
                del table[name]
    return table


def _not_hashed(cls: type[BaseModel]) -> list[str]:
    return [n for n, f in cls.model_fields.items() if NotHashed in f.metadata]


def _tag(value: BaseModel, default: Any) -> dict[str, Any]:
    """Name a union member that is not the default one: two members may share every default."""
    if "name" not in type(value).model_fields or isinstance(default, type(value)):
        return {}
    return {"name": getattr(value, "name", None)}
