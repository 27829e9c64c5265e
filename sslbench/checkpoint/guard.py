"""Torch's files are looked through before torch opens them.

``torch.load(weights_only=True)`` runs no code, but it trusts the file's own numbers: it unpacks
whatever is compressed, in a mapped archive it takes a tensor's bytes from beyond its record or
from compressed ones without a word, and it hashes tuples of tuples for ages.
"""

import mmap
import re
import zipfile
from pathlib import Path
from typing import Any

from sslbench.checkpoint.torch_pickles import Storage
from sslbench.checkpoint.unpickling import ForeignPickleError, unpickle

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
        with zipfile.ZipFile(path) as archive:
            _look_through(archive, path.stat().st_size)
    except ForeignPickleError:
        raise
    except Exception as error:  # whatever a damaged archive leads to
        raise ForeignPickleError(f"its archive is damaged ({error})") from None


def _look_through(archive: zipfile.ZipFile, size: int) -> None:
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

    unpickle(memoryview(archive.read(pickled[0])), stored=stored)


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
