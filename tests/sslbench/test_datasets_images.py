"""Image lists from folders, list files and tars; decoding."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import devkits
import numpy as np
import pytest
from PIL import Image

from sslbench.datasets import DataError, DataRoots, decode_rgb, images, images_id

NOWHERE = DataRoots(Path("/nowhere"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in nested folders, beside things that are no images."""
    top = tmp_path / "photos"
    for name in ("b/2.JPG", "a.png", "b/c/1.jpeg"):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(devkits.jpeg((len(name), 4)))
    (top / "readme.txt").write_text("no image")
    (top / "b/._2.JPG").write_text("macOS litter")
    return top


def _tar(folder: Path, names: tuple[str, ...]) -> Path:
    path = folder.parent / "photos.tar"
    with tarfile.open(path, "w") as archive:
        for name in reversed(names):
            archive.add(folder / name, f"./{name}")
    return path


def test_a_folder_is_listed_with_all_below_it_in_order(folder: Path):
    found = images(folder, NOWHERE)
    assert found.names == ("a.png", "b/2.JPG", "b/c/1.jpeg")
    assert len(found) == 3 and found.name(1) == "b/2.JPG"
    assert found.read(1) == (folder / "b/2.JPG").read_bytes()


def test_a_link_to_a_parent_folder_does_not_loop(folder: Path):
    (folder / "b/again").symlink_to(folder)
    assert len(images(folder, NOWHERE)) == 3


def test_list_and_tar_give_the_same_images_as_their_folder(folder: Path):
    direct = images(folder, NOWHERE)
    listed = folder / "list.txt"
    listed.write_text("b/2.JPG\n\n# comment\na.png\n" + str(folder / "b/c/1.jpeg") + "\n")
    for source in (listed, _tar(folder, direct.names)):
        other = images(str(source), NOWHERE)
        assert other.names == direct.names
        assert [other.read(i) for i in range(3)] == [direct.read(i) for i in range(3)]
        assert images_id(other) == images_id(direct)


def test_an_image_list_survives_pickling(folder: Path):
    for source in (folder, _tar(folder, ("a.png",))):
        found = images(source, NOWHERE)
        assert pickle.loads(pickle.dumps(found)).read(0) == found.read(0)


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds no image: looked for .*\.jpg"):
        images(tmp_path, NOWHERE)


def test_a_list_entry_that_is_not_on_disk_is_named_with_its_line(folder: Path):
    listed = folder / "list.txt"
    listed.write_text("a.png\nb/gone.jpg\n")
    with pytest.raises(DataError, match=r"list.txt line 2: b/gone.jpg is not on disk"):
        images(listed, NOWHERE)
    listed.write_text("a.png\n./a.png\n")
    with pytest.raises(DataError, match=r"line 2: ./a.png is already on line 1"):
        images(listed, NOWHERE)
    listed.write_text("\n")
    with pytest.raises(DataError, match="lists no image"):
        images(listed, NOWHERE)


def test_a_compressed_or_cut_tar_is_refused(folder: Path):
    path = _tar(folder, ("a.png", "b/2.JPG"))
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"photos.tar"):
        images(path, NOWHERE)
    path.write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(DataError, match="cannot be read as an uncompressed tar"):
        images(path, NOWHERE)


def test_a_vanished_image_is_named(folder: Path):
    found = images(folder, NOWHERE)
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match=r"cannot read a.png"):
        found.read(0)
    with pytest.raises(DataError, match=r"a.png"):
        images_id(found)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(DataError, match="is not a source of images"):
        images(tmp_path / "x.zip", NOWHERE)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "LA"])
def test_every_mode_becomes_rgb(mode: str):
    buffer = io.BytesIO()
    image = Image.new("RGB", (5, 4), (200, 200, 200)).convert(mode)
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    pixels = decode_rgb(buffer.getvalue(), "x")
    assert pixels.shape == (4, 5, 3) and pixels.dtype == np.uint8
    assert abs(pixels.astype(int) - 200).max() <= 5


def test_exif_rotation_is_ignored():
    buffer = io.BytesIO()
    image = Image.new("RGB", (5, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif)
    assert decode_rgb(buffer.getvalue(), "x").shape == (4, 5, 3)


@pytest.mark.parametrize("keep", [0, 2, 300, -40])
def test_a_truncated_jpeg_is_named(keep: int):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    with pytest.raises(DataError, match=r"image b/2.jpg .* cannot be decoded"):
        decode_rgb(buffer.getvalue()[:keep], "b/2.jpg")


def test_the_id_depends_on_names_and_sizes_not_on_place_or_time(folder: Path):
    first = images_id(images(folder, NOWHERE))
    os.utime(folder / "a.png", (0, 0))
    moved = folder.rename(folder.parent / "moved")
    assert images_id(images(moved, NOWHERE)) == first
    (moved / "new.jpg").write_bytes(devkits.jpeg())
    added = images_id(images(moved, NOWHERE))
    (moved / "new.jpg").write_bytes(devkits.jpeg() + b"\0")
    grown = images_id(images(moved, NOWHERE))
    (moved / "new.jpg").unlink()
    assert images_id(images(moved, NOWHERE)) == first
    assert len({first, added, grown}) == 3


def test_a_name_that_is_not_utf8_is_named_with_the_way_out(folder: Path):
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(devkits.jpeg((4, 4)))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    listed = images(folder, NOWHERE)
    with pytest.raises(DataError, match=r"photos: .*'caf\\udce9\.png' is not UTF-8; rename"):
        images_id(listed)


@pytest.mark.parametrize("suffix", ["bmp", "PPM", "tif"])
def test_another_picture_of_equal_size_is_noticed_without_compression(suffix, tmp_path: Path):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 6), "red").save(path)
    size, before = path.stat().st_size, images_id(images(tmp_path, NOWHERE))
    Image.new("RGB", (8, 6), "blue").save(path)
    assert path.stat().st_size == size
    assert images_id(images(tmp_path, NOWHERE)) != before
