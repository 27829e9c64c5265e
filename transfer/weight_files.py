"""The three containers of converted weights, each written to equal bytes and read without code."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sslbench.files import atomic_path, interned, write_torch

PICKLE_PROTOCOL = 4  # the newest that every Python of Detectron2's time reads
NUMPY_1, NUMPY_2 = "numpy.core.multiarray", "numpy._core.multiarray"
PICKLE_MAGIC, ZIP_MAGIC = b"\x80", b"PK\x03\x04"
TENSORS = ("model", "state_dict")
Arrays = dict[str, npt.NDArray[np.float32]]


class WeightsError(ValueError):
    """A file that is not the converted weights it should be."""


def format_of(path: Path) -> str | None:
    """Name the container by the file's first bytes; None is none of the three.

    Raises:
        WeightsError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    if head.startswith(PICKLE_MAGIC):
        return "pkl"
    if head.startswith(ZIP_MAGIC):
        return "pth"
    return "safetensors" if head[8:] == b"{" else None  # behind the header's length


def write_pickle(path: Path, content: dict[str, Any]) -> None:
    """Write a pickle of arrays that NumPy 1 opens too."""
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        _Pickler(file, PICKLE_PROTOCOL).dump(interned(content))


def read_pickle(path: Path) -> Any:
    """Read a pickle of arrays and plain containers; nothing that it names is called, NumPy neither.

    NumPy's own functions would take whatever a damaged file says, down to crashes.

    Raises:
        WeightsError: it is damaged.
    """
    from sslbench.checkpoint.foreign import read_foreign
    from sslbench.checkpoint.unpickling import ForeignPickleError

    try:
        return _with_arrays(read_foreign(path))
    except ForeignPickleError as error:
        raise _damaged(path, str(error)) from None


def write_torch_file(path: Path, content: dict[str, Any]) -> None:
    """Write a torch file of tensors that loads with ``weights_only=True``."""
    import torch

    def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
        # of the array's own bytes only, even if it was cut out of a larger storage
        return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in arrays.items()}

    write_torch(path, {k: tensors(v) if k in TENSORS else v for k, v in content.items()})


def read_torch_file(path: Path) -> Any:
    """Read a torch file.

    Raises:
        WeightsError: it is damaged or something else.
    """
    from sslbench.checkpoint.errors import CheckpointError
    from sslbench.checkpoint.reading import read_tensors

    try:
        return _with_arrays(read_tensors(path))
    except CheckpointError as error:
        raise WeightsError(str(error)) from None


def _with_arrays(top: Any) -> Any:
    """Make the tensors of a model arrays; what is no tensor stays, and is refused later."""
    import torch

    def array(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        try:
            return value.detach().numpy()
        except (TypeError, RuntimeError):  # sparse, or of a kind that NumPy lacks
            return value

    def arrays(model: Any) -> Any:
        return {n: array(v) for n, v in model.items()} if isinstance(model, Mapping) else None

    if not isinstance(top, Mapping):
        return top
    return {key: arrays(value) if key in TENSORS else value for key, value in top.items()}


def write_safetensors(path: Path, content: dict[str, Any]) -> None:
    """Write a safetensors file; the library leaves the order of its header to chance."""
    from safetensors.numpy import save

    metadata = {"__author__": content["__author__"], **content["metadata"]}
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    (arrays,) = (content[name] for name in TENSORS if name in content)
    saved = memoryview(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, texts))
    end = 8 + int.from_bytes(saved[:8], "little")
    header = json.loads(bytes(saved[8:end]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers stay aligned
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(saved[end:])


def read_safetensors(path: Path) -> Any:
    """Read a safetensors file.

    Raises:
        WeightsError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None
    return {"__author__": metadata.pop("__author__", None), "metadata": metadata, "model": model}


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{path} cannot be read as converted weights ({reason}); it is cut short or damaged. "
        "Convert the checkpoint again"
    )


class _Pickler(vars(pickle)["_Pickler"]):  # type: ignore[misc]  # the one whose names can be chosen
    """Names NumPy's function as NumPy 1 does; NumPy 2 knows both names, NumPy 1 but its own."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__module__", None) != NUMPY_2:
            super().save_global(obj, name)
            return
        self.save(NUMPY_1)
        self.save(obj.__name__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)
