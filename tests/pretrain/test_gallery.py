"""python -m pretrain.masks show: pages and pictures of masks."""

import base64
import io
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner, Result

from pretrain.config import RandomInitConfig
from pretrain.masks.__main__ import app
from pretrain.masks.cells import enlarge
from pretrain.masks.colours import BARE
from pretrain.masks.features import CellFeatures
from pretrain.masks.kmeans import KMeans, kmeans
from pretrain.masks.panels import TRUTH, Panel, Shown, Wanted, open_stores, pictures
from pretrain.masks.picture_features import PictureFeatures
from pretrain.masks.refresh import Bootstrap, refresh
from pretrain.masks.sources import make_fixed_masks
from pretrain.masks.store import MaskEntry, MaskError, MaskStore, write_store
from pretrain.masks.upsampled import upsampled_labels
from pretrain.stage import RandomInit
from sslbench.checkpoint import load_backbone
from sslbench.datasets import DataRoots, ImageList, decode_rgb, images, images_id
from sslbench.log import RunLog
from sslbench.rng import torch_generator
from sslbench.stage import StageContext

SPEC = "coco2017/val"


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["show", *(str(word) for word in words)])


@pytest.fixture
def roots(tmp_path) -> DataRoots:
    """Four images in COCO's layout with a square object each, and one without any."""
    (tmp_path / "coco/val2017").mkdir(parents=True)
    (tmp_path / "coco/annotations").mkdir()
    generator = np.random.default_rng(0)
    listed, objects = [], []
    for number in range(1, 6):
        pixels = np.full((48, 64, 3), 60, np.uint8)
        pixels[8:32, 16:40] = generator.integers(0, 256, 3)
        name = f"{number:012d}.png"
        Image.fromarray(pixels).save(tmp_path / "coco/val2017" / name)
        listed.append({"id": number, "file_name": name, "height": 48, "width": 64})
        box = {"bbox": [16, 8, 24, 24], "area": 576, "iscrowd": 0}
        corners = [[16, 8, 40, 8, 40, 32, 16, 32]]
        ids = {"id": number, "image_id": number, "category_id": 3}
        objects.append({**ids, **box, "segmentation": corners})
    payload = {"images": listed, "annotations": objects[:4], "categories": [{"id": 3, "name": "x"}]}
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(json.dumps(payload))
    return DataRoots(tmp_path)


@pytest.fixture
def listed(roots) -> ImageList:
    return images(SPEC, roots)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "random"
    folder.mkdir()
    config = RandomInitConfig(depth=18, width=0.125, seed=9)
    made = RandomInit(config).run(StageContext(folder, {}, DataRoots(tmp_path)))
    return folder / made["checkpoint"]


@pytest.fixture
def stores(listed, checkpoint, tmp_path) -> list[Path]:
    """A grid, and two bootstrapped generations of other K."""
    folder, identity = tmp_path / "run/masks", images_id(listed)
    folder.mkdir(parents=True)
    backbone = load_backbone(checkpoint).build()
    with RunLog(folder) as log:
        make_fixed_masks("grid", listed, identity, folder / "grid", log)
        for epoch, clusters in ((6, 3), (100, 5)):
            settings = Bootstrap(("layer2.2",), clusters, clusters, 3, 0, epoch)
            name = f"epoch_{epoch:04d}"
            refresh(backbone, listed, identity, folder / name, settings, log)
    return [folder / "grid", folder / "epoch_0006", folder / "epoch_0100"]


def panels(stores, listed, roots, place=0, **wanted) -> dict[str, Panel]:
    opened = open_stores(stores, listed)
    shown = Shown.load(SPEC, listed, roots)
    (picture,) = pictures(opened, shown, [place], Wanted(**wanted))
    return {panel.title: panel for panel in picture.panels}


def embedded(page: str) -> list[Image.Image]:
    found = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_page_needs_nothing_else_and_holds_every_panel(stores, roots, tmp_path):
    out = tmp_path / "pages/gallery.html"
    made = call(*stores, "--data", roots.root, "--images", SPEC, "--out", out, "--count", 3)
    assert made.exit_code == 0, made.output
    page = out.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page.replace("http://www.w3.org", "")
    # of three images each: the photo, and a mask and its outlines for three stores and the objects
    assert len(embedded(page)) == 3 * (1 + 2 * 4)
    assert {image.size for image in embedded(page)} == {(64, 48)}
    for title in ("grid (25)", "kmeans epoch_0006", "kmeans epoch_0100", f"{TRUTH} (1)"):
        assert page.count(f"<figcaption>{title}") == 3
    assert page.count('tabindex="0"') == 12


def test_a_png_has_a_row_an_image_and_a_column_a_panel(stores, roots, tmp_path):
    out = tmp_path / "gallery.png"
    made = call(*stores, "--data", roots.root, "--images", SPEC, "--out", out, "--count", 2)
    assert made.exit_code == 0, made.output
    width, height = Image.open(out).size
    assert width / height == pytest.approx(5 * 2.6 / (2 * 2.2), rel=0.01)


def test_a_panel_shows_the_stored_labels(stores, listed, roots):
    shown = panels(stores[1:2], listed, roots)["kmeans epoch_0006"].numbers_HW
    labels = enlarge(MaskStore(stores[1], images_id(listed)).read(0), 48, 64)
    pairs = np.unique(np.stack([shown.ravel(), labels.ravel()]), axis=1)
    assert len(pairs.T) == len(np.unique(labels)) == len(np.unique(shown))


def test_the_same_masks_twice_have_the_same_colours(stores, listed, roots):
    twice = open_stores([stores[2], stores[2]], listed)
    assert len(twice) == 1  # the same path is one column
    copy = stores[2].with_name("copy")
    copy.mkdir()
    for file in stores[2].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    first, second = list(panels([stores[2], copy], listed, roots).values())[:2]
    assert np.array_equal(first.numbers_HW, second.numbers_HW)


def test_refined_masks_have_the_colours_of_what_they_refine(stores, listed, roots):
    made = panels(stores[1:], listed, roots, crf=True)
    for title in ("kmeans epoch_0006", "kmeans epoch_0100"):
        plain, refined = made[title].numbers_HW, made[f"{title} + CRF"].numbers_HW
        assert set(np.unique(refined)) <= set(np.unique(plain))
        assert (plain == refined).mean() > 0.5


def test_objects_are_coloured_and_all_else_is_bare(stores, listed, roots):
    shown = panels(stores[:1], listed, roots)[TRUTH].numbers_HW
    assert (shown[8:32, 16:40] >= 0).all()
    assert (shown >= 0).sum() == 24 * 24


def test_objects_without_a_visible_pixel_leave_their_column_bare(stores, listed, roots, tmp_path):
    path = roots.root / "coco/annotations/instances_val2017.json"
    payload = json.loads(path.read_text())
    square = payload["annotations"][0]
    cover = {"segmentation": [[0, 0, 64, 0, 64, 48, 0, 48]], "area": 1}  # painted last
    payload["annotations"].append(square | cover | {"id": 9, "iscrowd": 1})
    path.write_text(json.dumps(payload))
    shown = panels(stores[:2], listed, roots)[TRUTH]
    assert (shown.numbers_HW == BARE).all() and shown.num_segments == 0
    for out in (tmp_path / "gallery.html", tmp_path / "gallery.png"):
        made = call(*stores, "--data", roots.root, "--images", SPEC, "--out", out, "--count", 1)
        assert made.exit_code == 0, made.output


def test_along_a_row_no_colour_goes_over_to_another_region(listed, roots, tmp_path):
    rows_of = {"epoch_0001": [0, 0, 0, 1, 1, 2], "epoch_0002": [0, 0, 0, 1, 1, 1]}
    rows_of["epoch_0003"] = [0, 0, 2, 1, 1, 1]  # the first is split, the second as before
    for name, rows in rows_of.items():
        labels = np.repeat(np.array(rows, np.uint8)[:, None], 8, axis=1)
        entries = [MaskEntry(labels, 48, 64, 3, 0)] * len(listed)
        manifest = {"source": "kmeans", "images_id": images_id(listed)}
        write_store(tmp_path / name, entries, manifest)
    made = panels([tmp_path / name for name in rows_of], listed, roots)
    columns = [panel.numbers_HW[::8, 0].tolist() for panel in made.values()][:3]
    assert columns == [[0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 1], [0, 0, 3, 1, 1, 1]]


def test_a_checkpoint_brings_features_to_crf_and_upsampled_clusters(
    stores, listed, roots, checkpoint
):
    options = {"crf": True, "upsampled": True, "checkpoints": (checkpoint,)}
    made = panels(stores[1:2], listed, roots, **options)
    finer = made["kmeans epoch_0006, features upsampled first"]
    plain = made["kmeans epoch_0006"]
    assert 1 < finer.num_segments <= plain.num_segments
    # finer than a cell: somewhere inside one the label changes
    blocks = finer.numbers_HW.reshape(6, 8, 8, 8).swapaxes(1, 2).reshape(48, 64)
    assert any(len(set(block.tolist())) > 1 for block in blocks)
    assert "kmeans epoch_0006 + CRF" in made


def test_a_store_may_be_called_what_would_be_a_formula(stores, roots, tmp_path):
    odd = stores[0].rename(tmp_path / "a$b^{c$")
    out = tmp_path / "g.png"
    made = call(odd, "--data", roots.root, "--images", SPEC, "--out", out, "--count", 1)
    assert made.exit_code == 0 and out.exists(), made.output


def test_a_file_name_is_text_on_the_page_and_no_markup(tmp_path):
    name = "<script>alert(1).png"
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "photos" / name)
    listed = images(tmp_path / "photos", DataRoots(tmp_path))
    with RunLog(tmp_path) as log:
        make_fixed_masks("grid", listed, images_id(listed), tmp_path / "grid", log)
    out = tmp_path / "gallery.html"
    made = call(tmp_path / "grid", "--images", tmp_path / "photos", "--out", out)
    assert made.exit_code == 0, made.output
    assert "<script" not in out.read_text()
    assert "&lt;script&gt;alert(1).png" in out.read_text()


def test_images_are_shown_by_their_names_in_the_order_given(stores, roots, tmp_path):
    names = ["000000000004.png", "000000000002.png"]
    options = [word for name in names for word in ("--name", name)]
    out = tmp_path / "gallery.html"
    made = call(stores[0], "--data", roots.root, "--images", SPEC, "--out", out, *options)
    assert made.exit_code == 0, made.output
    assert list(dict.fromkeys(re.findall(r"\d{12}\.png", out.read_text()))) == names


def test_a_file_name_suffices_where_one_image_has_it(image_dir, tmp_path):
    for folder in ("a", "b"):
        (image_dir / folder).mkdir()
        for name in ("twice.png", f"{folder}.png", "image_00.png"):
            Image.new("RGB", (16, 16)).save(image_dir / folder / name)
    shown = Shown(images(image_dir, DataRoots(tmp_path)), {})
    places = shown.places_of(["b.png", "a/twice.png", "image_00.png"])
    assert [shown.images.name(p) for p in places] == ["b/b.png", "a/twice.png", "image_00.png"]
    with pytest.raises(MaskError, match=r"2 images are called so: a/twice\.png, b/twice\.png"):
        shown.places_of(["twice.png"])


def other_weights(folder: Path, seed: int) -> Path:
    folder.mkdir()
    config = RandomInitConfig(depth=18, width=0.125, seed=seed)
    made = RandomInit(config).run(StageContext(folder, {}, DataRoots(folder)))
    return folder / made["checkpoint"]


@pytest.mark.parametrize("option", ["--crf", "--upsampled"])
def test_a_checkpoint_that_did_not_make_the_masks_is_refused(
    option, stores, listed, roots, tmp_path
):
    other, out = other_weights(tmp_path / "other", seed=10), tmp_path / "g.html"
    words = ["--data", roots.root, "--images", SPEC, "--out", out, "--checkpoint", other, option]
    made = call(stores[1], *words)
    assert made.exit_code == 1 and not out.exists()
    own = MaskStore(stores[1], images_id(listed)).manifest["backbone"]
    assert re.search(
        rf"other weights than the masks in .*epoch_0006 come from: \w{{16}} in its online branch, "
        rf"not {own}\. Give the run's state after epoch 5 \(schedule\.keep_epochs=\[5\]",
        made.output,
    )
    assert call(stores[0], *words).exit_code == 0  # no network made the grid


def test_masks_of_a_target_branch_are_shown_by_it(listed, roots, tmp_path):
    backbones = {}
    for branch, seed in (("online", 1), ("target", 2)):
        path = other_weights(tmp_path / branch, seed)
        for name, value in torch.load(path, weights_only=True)["model"].items():
            backbones[name.replace("online", branch)] = value
    torch.save({"model": backbones}, tmp_path / "both.pt")
    words = ["make", tmp_path / "m", "--images", SPEC, "--data", roots.root, "max_clusters=3"]
    words += ["--checkpoint", tmp_path / "both.pt", "--branch", "target"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    store = MaskStore(tmp_path / "m", images_id(listed))
    features = PictureFeatures.load(tmp_path / "both.pt", store)
    expected = PictureFeatures.load(tmp_path / "target/checkpoint.pt", store)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert torch.equal(features.of_cells(pixels), expected.of_cells(pixels))


def test_upsampled_features_are_clustered_by_the_metric_of_the_masks(listed, checkpoint, tmp_path):
    network, identity = load_backbone(checkpoint).build(), images_id(listed)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    found = {}
    for metric in ("cosine", "euclidean"):
        rule = KMeans(metric=metric)
        settings = Bootstrap(("layer2.2",), 3, 3, 3, 0, 6, rule)
        with RunLog(tmp_path) as log:
            store = refresh(network, listed, identity, tmp_path / metric, settings, log)
        made_HW = upsampled_labels(PictureFeatures.load(checkpoint, store), pixels, 5, 0, 0)
        cells = CellFeatures(network, ("layer2.2",), metric, torch.float32)
        map_1Dhw = cells([torch.from_numpy(pixels)])[0].T.reshape(1, -1, 3, 4)
        finer = F.interpolate(map_1Dhw, (12, 16), mode="bilinear", align_corners=False)
        generator = torch_generator(0, "upsampled", 0)
        labels_N = kmeans(finer[0].flatten(1).T, 5, generator, rule).labels_N
        assert np.array_equal(made_HW[::2, ::2], labels_N.reshape(12, 16).numpy())
        found[metric] = made_HW
    assert not np.array_equal(found["cosine"], found["euclidean"])


def test_a_crf_by_features_needs_clusters_by_cosine(listed, roots, checkpoint, tmp_path):
    settings = Bootstrap(("layer2.2",), 3, 3, 3, 0, 6, KMeans(metric="euclidean"))
    network = load_backbone(checkpoint).build()
    with RunLog(tmp_path) as log:
        refresh(network, listed, images_id(listed), tmp_path / "masks", settings, log)
    with pytest.raises(MaskError, match="clustered by euclidean distance: leave --checkpoint out"):
        panels([tmp_path / "masks"], listed, roots, crf=True, checkpoints=(checkpoint,))
    assert "kmeans masks + CRF" in panels([tmp_path / "masks"], listed, roots, crf=True)


def test_prototypes_are_the_mean_directions_of_the_whole_group(stores, listed, checkpoint):
    store = MaskStore(stores[1], images_id(listed))
    features = PictureFeatures.load(checkpoint, store)
    made_KD = features.prototypes(store, listed, 0).numpy()
    rows, labels = [], []
    for member in store.group_of(0):
        image_HW3 = decode_rgb(listed.read(member), listed.name(member))
        rows.append(features.of_cells(image_HW3).numpy())
        labels.append(store.read(member).ravel())
    assert len(store.group_of(0)) >= 2
    points, owners = np.concatenate(rows), np.concatenate(labels)
    for label in np.unique(owners):
        mean = points[owners == label].mean(0)
        assert made_KD[label] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_a_folder_of_images_has_no_column_of_objects(image_dir, tmp_path):
    plain = images(image_dir, DataRoots(tmp_path))
    with RunLog(tmp_path) as log:
        make_fixed_masks("grid", plain, images_id(plain), tmp_path / "grid", log)
    out = tmp_path / "gallery.html"
    made = call(tmp_path / "grid", "--images", image_dir, "--out", out, "--count", 1)
    assert made.exit_code == 0, made.output
    assert TRUTH not in out.read_text()


def test_boxes_are_no_column_and_the_page_says_so(stores, roots, tmp_path):
    path = tmp_path / "coco/annotations/instances_val2017.json"
    payload = json.loads(path.read_text())
    for item in payload["annotations"]:
        del item["segmentation"]
    path.write_text(json.dumps(payload))
    out = tmp_path / "gallery.html"
    made = call(stores[0], "--data", roots.root, "--images", SPEC, "--out", out, "--count", 1)
    assert made.exit_code == 0, made.output
    assert f"<figcaption>{TRUTH}" not in out.read_text()
    assert "a box but no outline" in out.read_text()


def test_images_of_one_cell_are_shown(tmp_path):
    (tmp_path / "dots").mkdir()
    for side in (1, 5, 8):
        Image.new("RGB", (side, side), (side, 0, 0)).save(tmp_path / f"dots/{side}.png")
    dots = images(tmp_path / "dots", DataRoots(tmp_path))
    with RunLog(tmp_path) as log:
        make_fixed_masks("grid", dots, images_id(dots), tmp_path / "grid", log)
    for out in (tmp_path / "dots.html", tmp_path / "dots.png"):
        made = call(tmp_path / "grid", "--images", tmp_path / "dots", "--out", out, "--crf")
        assert made.exit_code == 0, made.output


def test_an_image_that_changed_its_size_is_refused(stores, listed, roots):
    shown = Shown.load(SPEC, listed, roots)
    opened = open_stores(stores[:1], listed)
    Image.new("RGB", (80, 48)).save(roots.root / "coco/val2017" / listed.name(0))
    with pytest.raises(MaskError, match=r"is 48x80 pixels, its masks in .* made for 48x64"):
        list(pictures(opened, shown, [0], Wanted()))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--out", "gallery.pdf"], "ends in .html or .png"),
        (["--out", "g.html", "--upsampled"], "add --checkpoint"),
        (["--out", "g.html", "--crf", "--checkpoint", "a", "--checkpoint", "b"], "2 checkpoints"),
        (["--out", "g.html", "--checkpoint", "a"], "--checkpoint a changes nothing by itself"),
        (["--out", "folder.png"], "error: --out folder.png is a folder; give the name of a file"),
        (["--out", "file/g.html"], "error: --out file/g.html: file is there and no folder"),
        (["--out", "g.html", "--crf", "--checkpoint", "none.pt"], "none.pt"),
        (["--out", "g.html", "--name", "000000000001.png", "--count", "2"], "--count 2 beside"),
        (["--out", "g.html", "--name", "3.png"], "nearest names are 000000000003.png, "),
    ],
)
def test_what_cannot_be_shown_is_one_line(stores, roots, options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    made = call(*stores, "--data", roots.root, "--images", SPEC, *options)
    assert made.exit_code == 1
    assert told in made.output
    assert not list(tmp_path.glob("g*.html"))


def test_masks_of_another_image_list_are_refused(stores, roots, image_dir):
    made = call(*stores, "--images", image_dir, "--out", "gallery.html")
    assert made.exit_code == 1
    assert "another image list" in made.output


@pytest.mark.browser
def test_a_browser_shows_the_page(stores, roots, tmp_path):
    out = tmp_path / "gallery.html"
    call(*stores, "--data", roots.root, "--images", SPEC, "--out", out, "--count", 1)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    shown = subprocess.run(
        ["chromium", *flags, f"file://{out}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "<figcaption>grid (25)</figcaption>" in shown
