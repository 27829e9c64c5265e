"""Images from a folder, a list file, a tar or a data set: names, bytes, pixels, and an id."""

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sslbench.datasets.roots import DataError, shorten

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
UNCOMPRESSED = frozenset({".bmp", ".ppm", ".tif", ".tiff"})  # as a rule; TIFF may be either


@dataclass(frozen=True)
class ImageList:
    """Images in a stable order, read one by one; picklable, so that loader processes can share it.

    Args:
        base: folder that the names are relative to, or the tar.
        names: sorted.
        offsets: for a tar: (first byte, number of bytes) of each image; None for files.
    """

    base: Path
    names: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the name within the folder, list or tar; moving the data does not change it."""
        return self.names[index]

    def read(self, index: int) -> bytes:
        """Return the file's bytes.

        Raises:
            DataError: the file vanished or the tar was cut short.
        """
        try:
            if self.offsets is None:
                return (self.base / self.names[index]).read_bytes()
            return self._read_member(index, self.offsets[index])
        except OSError as error:
            raise DataError(
                f"{self.base}: cannot read {self.names[index]} ({error.strerror or error}); "
                "it was there when the images were listed"
            ) from error

    def _read_member(self, index: int, place: tuple[int, int]) -> bytes:
        offset, size = place
        with self.base.open("rb") as archive:
            archive.seek(offset)
            data = archive.read(size)
        if len(data) != size:
            raise DataError(f"{self.base} ends inside {self.names[index]}; copy the tar again")
        return data

    def size(self, index: int) -> int:
        """Return the number of bytes without reading them."""
        if self.offsets is not None:
            return self.offsets[index][1]
        try:
            return os.stat(os.path.join(self.base, self.names[index])).st_size
        except OSError as error:
            raise DataError(f"{self.base / self.names[index]}: {error.strerror}") from error


def images_id(images: ImageList) -> str:
    """Hash the images' names and sizes; the same wherever and whenever the files were copied.

    Sizes stand for the bytes, since reading 118,000 JPEGs from a network disk would hold up every
    command, and another picture hardly ever compresses to the same length. Without compression
    every picture of one size in pixels has the same length: there the bytes themselves are hashed.

    Raises:
        DataError: a name is not UTF-8, and so has no such bytes everywhere.
    """
    digest = hashlib.sha256()
    for index, name in enumerate(images.names):
        try:
            digest.update(f"{name}\0{images.size(index)}".encode())
        except UnicodeEncodeError:
            raise DataError(
                f"{images.base}: the name of the image {name!a} is not UTF-8; rename the file"
            ) from None
        if os.path.splitext(name)[1].lower() in UNCOMPRESSED:
            digest.update(hashlib.sha256(images.read(index)).digest())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def images_of_path(path: Path) -> ImageList:
    """List the images of a folder and all below it, a ``.txt`` list, or an uncompressed ``.tar``.

    Raises:
        DataError: nothing there, no image in it, or a listed file that does not exist.
    """
    path = path.expanduser()
    if path.is_dir():
        names = sorted(_walk(path))
        if not names:
            raise DataError(
                f"{path} holds no image: looked for {', '.join(sorted(SUFFIXES))} "
                "in it and all folders below"
            )
        return ImageList(path, tuple(names))
    if not path.exists():
        raise DataError(
            f"{path}: no such folder, list file or tar. "
            "For a data set write data set/split, as voc2007/trainval"
        )
    if path.name.endswith(".tar"):
        return _images_of_tar(path)
    if path.suffix == ".txt":
        return _images_of_list(path)
    raise DataError(
        f"{path} is not a source of images; give a folder, a .txt with one image path a line, "
        "or an uncompressed .tar"
    )


def _walk(top: Path) -> Iterator[str]:
    """Names of all images below ``top``; follows links to folders, each real folder once."""
    seen = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        folder = os.path.join(top, prefix)
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                # "._x.jpg" is what macOS leaves beside x.jpg: not an image.
                if entry.name.startswith("."):
                    continue
                if _is_image_name(entry.name):
                    yield prefix + entry.name
                elif entry.is_dir():
                    waiting.append(f"{prefix}{entry.name}/")


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def index_folder(folder: Path) -> dict[str, str]:
    """Map file stem -> file name for the images directly in ``folder``.

    Raises:
        DataError: the folder is missing or has no image.
    """
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if _is_image_name(e.name) and e.name[0] != "."]
    except OSError as error:
        raise DataError(f"image folder {folder}: {error.strerror}") from error
    if not names:
        raise DataError(f"image folder {folder} holds no image; was the data set unpacked?")
    return {os.path.splitext(name)[0]: name for name in sorted(names)}


def _images_of_list(path: Path) -> ImageList:
    entries: dict[Path, int] = {}
    for number, line in enumerate(_list_lines(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = Path(os.path.abspath(path.parent / Path(line.strip()).expanduser()))
        if entry in entries:
            raise DataError(
                f"{path} line {number}: {line.strip()} is already on line {entries[entry]}"
            )
        if not entry.is_file():
            raise DataError(
                f"{path} line {number}: {line.strip()} is not on disk (looked for {entry}; "
                "relative paths count from the list's own folder)"
            )
        entries[entry] = number
    if not entries:
        raise DataError(f"{path} lists no image; write one path a line")
    base = Path(os.path.commonpath([entry.parent for entry in entries]))
    return ImageList(base, tuple(sorted(entry.relative_to(base).as_posix() for entry in entries)))


def _list_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file ({error.reason})") from None


def _images_of_tar(path: Path) -> ImageList:
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = os.path.normpath(member.name)
                hidden = os.path.basename(name).startswith(".")
                if member.isfile() and _is_image_name(name) and not hidden:
                    members[name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as an uncompressed tar ({error}); "
            "unpack it, or make one with tar -cf"
        ) from error
    if not members:
        raise DataError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
    end = path.stat().st_size
    cut = [name for name, (offset, size) in members.items() if offset + size > end]
    if cut:
        raise DataError(f"{path} ends inside {shorten(cut)}; copy the tar again")
    names = sorted(members)
    return ImageList(path, tuple(names), tuple(members[name] for name in names))


def decode_rgb(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Decode an image file to uint8 (H, W, 3).

    Gray, palette and CMYK become RGB; EXIF rotation is ignored.

    Raises:
        DataError: empty, truncated or no image; names ``name``.
    """
    with _opened(data, name) as image:
        return np.asarray(image.convert("RGB"))


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Read (height, width) from an image file's header; EXIF rotation is ignored.

    Raises:
        DataError: empty or no image; names ``name``.
    """
    with _opened(data, name) as image:
        return image.height, image.width


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> "Iterator[PILImage]":
    """Open an image file; what goes wrong inside the block too is told with its name."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's own message names a buffer in memory
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"image {name} ({len(data)} bytes) cannot be decoded: {reason}; "
            "it is damaged or was cut short. Fetch it again or remove it from the data set"
        ) from error
