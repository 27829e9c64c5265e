"""The file of converted weights: a pickle that Detectron2's own checkpointer reads, with metadata.

``{"model": {name: float32 array}, "__author__": "sslbench", "metadata": {...}}``; names are exact,
so there is no ``matching_heuristics``. Reading it back builds arrays and plain containers, nothing
else.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sslbench.files import atomic_path

AUTHOR = "sslbench"
PICKLE_PROTOCOL = 4  # the newest that every Python of Detectron2's time reads
HARMLESS = {  # what a pickled array consists of, under the names of NumPy 1 and 2
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
Arrays = dict[str, npt.NDArray[np.float32]]


class WeightsError(ValueError):
    """A file that is not the converted weights it should be."""


def write_weights(path: Path, model: Arrays, metadata: Mapping[str, Any]) -> None:
    """Write the file atomically."""
    content = {"model": model, "__author__": AUTHOR, "metadata": dict(metadata)}
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        pickle.dump(content, file, protocol=PICKLE_PROTOCOL)


def is_weights(path: Path) -> bool:
    """Tell converted weights from a checkpoint by the file's name and first byte."""
    if path.suffix != ".pkl" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(2) == bytes([0x80, PICKLE_PROTOCOL])


def load_weights(path: Path | str) -> tuple[Arrays, dict[str, Any]]:
    """Read weights and metadata; no code that the file may carry is run.

    Raises:
        WeightsError: the file is something else, is damaged, or holds other than float32 arrays.
    """
    path = Path(path)
    content = _unpickle(path)
    if not isinstance(content, dict) or content.get("__author__") != AUTHOR:
        raise WeightsError(
            f"{path} was not written by 'python -m transfer convert'; convert the checkpoint first"
        )
    model, metadata = content.get("model"), content.get("metadata")
    if not isinstance(model, dict) or not model or not isinstance(metadata, dict):
        raise WeightsError(f"{path} holds no weights; convert the checkpoint again")
    for name, value in model.items():
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            raise WeightsError(f"{path}: {name!r} is not a float32 array; convert again")
    return model, metadata


def weights_digest(model: Arrays) -> str:
    """Hash names, shapes and values, whatever the order and the metadata."""
    digest = hashlib.sha256()
    for name in sorted(model):
        digest.update(f"{name} {model[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(model[name]).tobytes())
    return digest.hexdigest()


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Restricted(file).load()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise WeightsError(f"{path} is a folder; pass the weights.pkl inside it") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    # a damaged pickle can fail in any of these ways, none of them informative
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError) as error:
        raise _damaged(path, error) from None
    except (AttributeError, TypeError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path} cannot be read as converted weights ({type(error).__name__}: {error}); it is "
        "damaged or no pickle. Convert the checkpoint again"
    )


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in HARMLESS:
            raise WeightsError(
                f"contains {module}.{name}, which could run code, so the file was not opened. "
                "Convert the original checkpoint with 'python -m transfer convert'"
            )
        found: Callable[..., Any] = super().find_class(module, name)
        return found
