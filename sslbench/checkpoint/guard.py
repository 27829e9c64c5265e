"""Torch's files are looked through before torch opens them.

``torch.load(weights_only=True)`` runs no code, but it trusts the file's own numbers: it unpacks
whatever is compressed and compares no check sum, in a mapped archive it takes a tensor's bytes from
beyond its record or from compressed ones without a word, and it hashes tuples of tuples for ages.
"""

import io
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sslbench.checkpoint.torch_pickles import Storage
from sslbench.checkpoint.unpickling import ForeignPickleError, unpickle

LENGTHS = 26  # where a record's header says how long the rest of it is
CHUNK = 1 << 20  # bytes of a record in memory at a time
NUM_PICKLES = 5  # of a row: magic number, version, machine, content, keys of the storages
ITEM_SIZES = {
    **{"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4},
    **{"QInt32": 4, "Half": 2, "BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1},
    **{"QInt8": 1, "QUInt8": 1, "Untyped": 1},
}


def require_sound_archive(path: Path) -> None:
    """Look through an archive that ``torch.save`` writes since version 1.6.

    Raises:
        ForeignPickleError: it is compressed, damaged, or its tensors are not where they should be.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            _look_through(file, archive, path.stat().st_size)
    except ForeignPickleError:
        raise
    except Exception as error:  # whatever a damaged archive leads to
        raise ForeignPickleError(f"its archive is damaged ({error})") from None


def _look_through(file: IO[bytes], archive: zipfile.ZipFile, size: int) -> None:
    infos = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ForeignPickleError("its archive is compressed, which torch.save never does")
    if sum(info.file_size for info in infos) > size:
        raise ForeignPickleError("its archive would unpack to more than its size")
    sizes = {info.filename: info.file_size for info in infos}
    pickled = [name for name in sizes if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if len(pickled) != 1 or len(sizes) != len(infos):
        raise ForeignPickleError("it is an archive, but not one that torch.save wrote")
    folder = pickled[0].removesuffix("data.pkl")

    def stored(saved_id: Any) -> Storage | None:
        kind, key, count = saved_id[1].name.rpartition(".")[2], saved_id[2], saved_id[4]
        item = ITEM_SIZES.get(kind.removesuffix("Storage"))
        if item is not None and count and sizes[f"{folder}data/{key}"] != count * item:
            raise ForeignPickleError(f"its tensors and its record data/{key} differ in size")
        return None

    _compare_check_sums(
        file, [i for i in infos if i.filename.startswith((*pickled, f"{folder}data/"))]
    )
    unpickle(memoryview(b"".join(_content(file, archive.getinfo(pickled[0])))), stored=stored)


def _compare_check_sums(file: IO[bytes], records: list[zipfile.ZipInfo]) -> None:
    """Read every record once, for torch compares none; on request it does not write them either."""
    damaged = [info.filename for info in records if _check_sum(file, info) != info.CRC]
    if damaged and len(damaged) < len(records):
        raise ForeignPickleError(f"its record {damaged[0]} is damaged: its check sum is another")


def _check_sum(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    found = 0
    for chunk in _content(file, info):
        found = zlib.crc32(chunk, found)
    return found


def _content(file: IO[bytes], info: zipfile.ZipInfo) -> Iterator[bytes]:
    """A record's bytes as torch maps them: behind its own header, whatever its check sum."""
    file.seek(info.header_offset + LENGTHS)
    file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)  # its name, and padding
    left = info.file_size
    while left and (chunk := file.read(min(left, CHUNK))):
        left -= len(chunk)
        yield chunk


def require_sound_row(path: Path) -> None:
    """Look through the pickles of a file of torch before version 1.6; it checks the rest itself.

    Raises:
        ForeignPickleError: they are damaged.
    """
    place = 0
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        for _ in range(NUM_PICKLES):
            _, place = unpickle(data, place, stored=lambda _: None)
