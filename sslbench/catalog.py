"""Catalog strings ``"module:attribute"`` become objects, only when they are needed."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any


class CatalogError(ValueError):
    """A name that no catalog knows, or a reference that leads nowhere."""


def resolve(reference: str) -> Any:
    """Import ``module`` and return its ``attribute``."""
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise CatalogError(f"reference {reference!r} must look like module:attribute")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise CatalogError(f"{reference!r}: there is no module {error.name!r}") from None
        raise  # a missing dependency of that module: the user must see its own message
    if not hasattr(module, attribute):
        raise CatalogError(f"{reference!r}: {module_name} has no {attribute!r}")
    return getattr(module, attribute)


def lookup(catalog: Mapping[str, str], name: str, what: str) -> Any:
    """Resolve ``catalog[name]``; an unknown name is answered with the nearest one."""
    if name not in catalog:
        near = difflib.get_close_matches(name, catalog, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(catalog))}"
        raise CatalogError(f"unknown {what} {name!r}; {hint}")
    return resolve(catalog[name])
