"""Which packages could be imported, found out without importing them: that would take torch."""

import importlib.util
from pathlib import Path


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package; None where there is none.

    A folder that only bears its name, such as a clone in the working directory, is a namespace
    without ``__init__.py`` and does not count.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin).parent
