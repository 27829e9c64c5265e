"""Pickles that torch's own reader refuses, opened on request for the tensors in them.

Nothing that a file names is imported or called (``unpickling``). Objects of unknown classes that
behave like a dict become one, as a trainer's ``ConfigDict``; the rest is left out.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sslbench.checkpoint.torch_pickles import LateTensor, is_row, read_archive, read_row
from sslbench.checkpoint.unpickling import ForeignPickleError, PickledArray, Unknown, unpickle

ZIP_MAGIC, NUMPY_MAGIC = b"PK\x03\x04", b"\x93NUMPY"
MAX_DEPTH = 100  # of containers in containers
MAX_NAMES = 100_000  # of tensors in a network


def read_foreign(path: Path) -> Any:
    """Read a pickle of any origin: torch's with other classes in it, NumPy's, or a plain one.

    Returns:
        Tensors, numbers and texts in dicts, lists and tuples.

    Raises:
        ForeignPickleError: it is damaged, or asks for what no checkpoint needs.
    """
    data = memoryview(path.read_bytes())
    head = bytes(data[: len(NUMPY_MAGIC)])
    if head.startswith(ZIP_MAGIC):
        top = read_archive(data)
    elif head == NUMPY_MAGIC:
        top = _object_array(data)
    elif is_row(data):
        top = read_row(data)
    else:
        top = unpickle(data)[0]
    return _Plain().of(top, 0)


def _object_array(data: memoryview) -> Any:
    """The one object of a 0-dimensional array of objects, as ``np.save`` writes a dict."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
    except Exception as error:  # the header is Python's text of a dict
        raise ForeignPickleError(f"its header is damaged ({error})") from None
    if not dtype.hasobject or shape:
        raise ForeignPickleError(f"it is an array of {dtype}, not a mapping of names to tensors")
    array = unpickle(data, file.tell())[0]
    values = array.values if isinstance(array, PickledArray) else None
    if not isinstance(values, list) or len(values) != 1:
        raise ForeignPickleError("it holds no object")
    return values[0]


class _Plain:
    """Turns what was read into plain containers; each thing once, however often it is named."""

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}
        self.kept: list[Any] = []  # or another object might get the id of one that is gone

    def of(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ForeignPickleError(f"it nests deeper than {MAX_DEPTH} containers")
        if value is None or isinstance(value, str | bytes | int | float | bool | complex | Tensor):
            return value
        if id(value) not in self.done:
            self.kept.append(value)
            self.done[id(value)] = None  # what contains itself ends here
            self.done[id(value)] = self._made(value, depth)
        return self.done[id(value)]

    def _made(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {key: self.of(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.of(item, depth + 1) for item in value])
        if isinstance(value, LateTensor):
            return value.made()
        if isinstance(value, PickledArray):
            return self.of(value.values, depth + 1)
        if isinstance(value, Unknown):
            return self._of_unknown(value, depth)
        return None

    def _of_unknown(self, value: Unknown, depth: int) -> Any:
        state = value.state if isinstance(value.state, dict) else {}
        if state.keys() >= {"_parameters", "_buffers", "_modules"}:
            return self._network(state, depth)
        if value.pairs or state:
            return self.of({**state, **value.pairs}, depth + 1)
        return self.of(value.arguments, depth + 1)  # a named tuple

    def _network(self, state: dict[Any, Any], depth: int) -> dict[str, Any]:
        """Return the state dict of a whole network that was pickled."""
        found: dict[str, Any] = {}
        for name in ("_parameters", "_buffers"):
            table = self.of(state[name], depth + 1)
            found |= table if isinstance(table, dict) else {}
        parts = self.of(state["_modules"], depth + 1)
        for part, inner in parts.items() if isinstance(parts, dict) else ():
            if isinstance(inner, dict):
                found |= {f"{part}.{key}": value for key, value in inner.items()}
            if len(found) > MAX_NAMES:  # one part in two places, and that again, doubles each time
                raise ForeignPickleError(f"it has a network of more than {MAX_NAMES:,} tensors")
        return found
