"""Torch's own files, read by the unpickler that builds nothing but tensors and containers.

For files that name classes beyond torch's list (a trainer's config, a history of losses), which
``torch.load(weights_only=True)`` refuses. Both of torch's layouts: the archive since 1.6, and the
row of pickles before, with the storages behind it.
"""

import io
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslbench.checkpoint.unpickling import ForeignPickleError, Function, unpickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
HEAD_OF_ROW = 64  # bytes; a pickle of the number takes 15, or 32 as text
DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


@dataclass(eq=False)
class Storage:
    """A flat run of numbers, also before they were read."""

    dtype: torch.dtype
    content: bytearray | None = None


@dataclass(eq=False)
class LateTensor:
    """A tensor whose storage comes behind the pickle, in the old layout."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def made(self) -> Tensor:
        """Make the tensor once the numbers are there.

        Raises:
            ForeignPickleError: it reaches beyond its storage, or shows numbers more than once.
        """
        content, dtype = self.storage.content or bytearray(), self.storage.dtype
        held, shown = len(content) // dtype.itemsize, 1
        for number in self.size:
            shown *= number
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if min((self.offset, *self.size, *self.stride)) < 0 or (shown and last >= held):
            raise ForeignPickleError("it has a tensor that reaches beyond its numbers")
        if shown > held:
            raise ForeignPickleError("it has a tensor that shows the same numbers many times")
        if not shown:
            return torch.empty(self.size, dtype=dtype)
        # not copied: a thousand tensors may share one storage
        flat = torch.frombuffer(content, dtype=dtype)
        return flat.as_strided(self.size, self.stride, self.offset)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> LateTensor:
    if not isinstance(storage, Storage):
        raise ForeignPickleError(f"it has a tensor of a {type(storage).__name__}")
    return LateTensor(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


TENSORS = {
    "torch._utils._rebuild_tensor": Function(_tensor),
    "torch._utils._rebuild_tensor_v2": Function(_tensor),
    "torch.Size": Function(lambda sizes=(): tuple(sizes)),
}


def read_archive(data: memoryview) -> Any:
    """Read the archive that ``torch.save`` writes since version 1.6.

    Raises:
        ForeignPickleError: it is damaged, compressed beyond its size, or no such archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _of_archive(archive, len(data))
    except ForeignPickleError:
        raise
    except Exception as error:  # whatever a damaged archive leads to
        raise ForeignPickleError(f"its archive is damaged ({error})") from None


def _of_archive(archive: zipfile.ZipFile, size: int) -> Any:
    if sum(info.file_size for info in archive.infolist()) > size:  # torch does not compress
        raise ForeignPickleError("its archive would unpack to more than its size")
    (pickled,) = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist():
        _require_little(archive.read(f"{folder}byteorder"))
    storages: dict[str, Storage] = {}

    def stored(saved_id: Any) -> Storage:
        dtype, key = _named(saved_id)
        if key not in storages:
            storages[key] = Storage(dtype, bytearray(archive.read(f"{folder}data/{key}")))
        return storages[key]

    top, _ = unpickle(memoryview(archive.read(pickled)), builders=TENSORS, stored=stored)
    return top


def _require_little(order: bytes) -> None:
    if order != b"little":
        raise ForeignPickleError(f"it was written in byte order {order!r}")


def _named(saved_id: Any) -> tuple[torch.dtype, str]:
    """Dtype and key of torch's ("storage", its class, key, device, count, ...)."""
    kind = saved_id[1].name.rpartition(".")[2].removesuffix("Storage")
    if saved_id[0] != "storage" or kind not in DTYPES:
        raise ForeignPickleError(f"it has a {kind or 'nameless'} storage")
    return DTYPES[kind], str(saved_id[2])


def read_row(data: memoryview) -> Any:
    """Read the row of pickles that ``torch.save`` wrote before version 1.6.

    Raises:
        ForeignPickleError: it is damaged, or no such row.
    """
    try:
        return _of_row(data)
    except ForeignPickleError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise ForeignPickleError(f"it is damaged ({type(error).__name__}: {error})") from None


def _of_row(data: memoryview) -> Any:
    place, head = 0, []
    for _ in range(3):  # magic number, version, sizes of the machine's numbers
        value, place = unpickle(data, place)
        head.append(value)
    if head[0] != LEGACY_MAGIC:
        raise ForeignPickleError("torch did not write it")
    storages: dict[str, Storage] = {}

    def stored(saved_id: Any) -> Any:
        if saved_id[0] == "module":  # a class with its source text
            return saved_id[1]
        dtype, key = _named(saved_id)
        return storages.setdefault(key, Storage(dtype))

    top, place = unpickle(data, place, TENSORS, stored)
    keys, place = unpickle(data, place)
    for key in keys:
        (count,) = struct.unpack("<q", data[place : place + 8])
        end = place + 8 + count * storages[key].dtype.itemsize
        if not place + 8 <= end <= len(data):
            raise ForeignPickleError("its end is missing")
        storages[key].content = bytearray(data[place + 8 : end])
        place = end
    return top


def is_row(data: memoryview) -> bool:
    """Whether torch wrote the file, in the old layout; its first bytes tell."""
    try:
        return bool(unpickle(data[:HEAD_OF_ROW])[0] == LEGACY_MAGIC)
    except ForeignPickleError:
        return False
