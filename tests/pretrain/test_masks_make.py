"""python -m pretrain.masks make: the pretraining's own masks, made outside of it."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from pretrain.checkpoint import save_untrained
from pretrain.config import PretrainConfig
from pretrain.masks import boxes, parts, sources
from pretrain.masks import make as make_module
from pretrain.masks.__main__ import app
from pretrain.masks.kmeans import KMeans
from pretrain.masks.network import read_network
from pretrain.masks.refresh import Bootstrap, refresh
from pretrain.masks.store import read_manifest
from pretrain.stage import Pretrain
from sslbench.config import build
from sslbench.datasets import DataRoots, images, images_id
from sslbench.log import RunLog
from sslbench.resnet import ResNet
from sslbench.rng import seeded
from sslbench.stage import run_standalone
from tests.pretrain.runs import train
from tests.pretrain.test_ground_truth import SPEC, write_coco

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["max_clusters=6", "images_per_clustering=3", "iterations=4"]


def device_for(*words: object) -> list[str]:
    """The CPU for a network; masks that need none refuse to be told."""
    sources = [word for word in map(str, words) if word.startswith("source=")]
    return ["--device", "cpu"] if sources in ([], ["source=kmeans"]) else []


def call(store: Path, images: object, *words: object) -> Result:
    arguments = ["make", store, "--images", images, *device_for(*words), *words]
    return CliRunner().invoke(app, [str(word) for word in arguments])


def made(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 1 and "Traceback" not in result.output
    return result.output


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A small trunk in the pretraining format."""
    with seeded(3, "test"):
        backbone = ResNet(18, 0.125)
    cfg = build(PretrainConfig, {"arch": {"depth": 18, "width": 0.125}}, "test")
    save_untrained(tmp_path / "trunk.pt", backbone, cfg)
    return tmp_path / "trunk.pt"


def test_a_bootstrapped_store_holds_what_a_refresh_makes(
    checkpoint, image_dir, image_list, tmp_path
):
    keys = ["min_clusters=3", "start=kmeans++", "metric=euclidean", "layers=['layer2', 'layer3']"]
    made(tmp_path / "m/own", image_dir, "--checkpoint", checkpoint, "seed=7", *KEYS, *keys)
    rule = KMeans(iterations=4, metric="euclidean", start="kmeans++")
    settings = Bootstrap(("layer2", "layer3"), 3, 6, 3, seed=7, epoch=0, rule=rule)
    backbone, identity = read_network(checkpoint), images_id(image_list)
    with RunLog(tmp_path) as log:
        refresh(backbone, image_list, identity, tmp_path / "refreshed", settings, log)
    assert content(tmp_path / "m/own") == content(tmp_path / "refreshed")


def test_a_store_of_torchvisions_file_is_that_of_the_same_weights_in_ours(
    checkpoint, image_dir, tmp_path
):
    model = torch.load(checkpoint, weights_only=True)["model"]
    plain = {name.removeprefix("online.backbone."): value for name, value in model.items()}
    torch.save(plain, tmp_path / "plain.pth")
    for name, file in (("a", checkpoint), ("b", tmp_path / "plain.pth")):
        made(tmp_path / name, image_dir, "--checkpoint", file, *KEYS)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_branch_decides_which_network_is_read(tiny, image_dir, image_list, tmp_path):
    train(tiny, image_list, tmp_path / "run")
    file = tmp_path / "run/checkpoints/last.pt"
    for branch in ("online", "target"):
        made(tmp_path / branch, image_dir, "--checkpoint", file, "--branch", branch, *KEYS)
    made(tmp_path / "default", image_dir, "--checkpoint", file, *KEYS)
    assert content(tmp_path / "default") == content(tmp_path / "online")
    assert content(tmp_path / "default") != content(tmp_path / "target")


def test_masks_of_a_kept_checkpoint_name_the_weights_as_the_run_does(
    tiny, image_dir, image_list, tmp_path
):
    schedule = tiny.schedule.model_copy(update={"keep_epochs": (1,)})
    train(tiny.model_copy(update={"schedule": schedule}), image_list, tmp_path / "run")
    kept = tmp_path / "run/checkpoints/epoch_0001.pt"
    made(tmp_path / "own", image_dir, "--checkpoint", kept, *KEYS)
    manifests = [read_manifest(tmp_path / name) for name in ("own", "run/masks/epoch_0002")]
    assert manifests[0]["backbone"] == manifests[1]["backbone"]


@pytest.mark.parametrize("source", ["crop", "grid", "felzenszwalb", "boxes", "ground_truth"])
def test_a_fixed_store_is_the_one_of_a_pretraining(source, tiny, tmp_path):
    roots = write_coco(tmp_path / "coco", num_images=4)
    table = json.loads(tiny.model_dump_json()) | {"images": SPEC}
    table["method"] |= {"warmup_epochs": 0, "refresh_masks_every": 0, "clustering_every": 0}
    table["method"]["masks"]["source"] = source
    table["schedule"] |= {"epochs": 1, "lr_warmup_epochs": 0, "keep_epochs": []}
    stage = Pretrain(build(PretrainConfig, table, "test"))
    folder, artifacts = run_standalone(stage, inputs={}, data=roots, out=tmp_path / "run")
    made(tmp_path / "own", SPEC, "--data", roots.root, f"source={source}")
    assert content(tmp_path / "own") == content(folder / artifacts["masks"])


def test_it_ends_with_the_row_of_ls(image_dir, tmp_path):
    said = made(tmp_path / "masks/grid", image_dir, "source=grid").stdout
    listed = CliRunner().invoke(app, ["ls", str(tmp_path / "masks/grid")]).stdout
    assert said == listed and "grid" in said and "complete" in said
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["grid"]


def test_a_finished_store_is_not_made_again(checkpoint, image_dir, tmp_path, monkeypatch):
    words = ["--checkpoint", checkpoint, *KEYS]
    first = made(tmp_path / "own", image_dir, *words)
    monkeypatch.setattr(make_module, "refresh", lambda *_: pytest.fail("made again"))
    assert made(tmp_path / "own", image_dir, *words).stdout == first.stdout


def test_a_finished_store_that_was_damaged_is_refused(image_dir, tmp_path):
    made(tmp_path / "own", image_dir, "source=grid")
    labels = bytearray((tmp_path / "own/labels.bin").read_bytes())
    labels[3] ^= 1
    (tmp_path / "own/labels.bin").write_bytes(bytes(labels))
    told = refused(tmp_path / "own", image_dir, "source=grid")
    assert "the content's hash is" in told and f"delete {tmp_path / 'own'} and run" in told
    assert "run folder" not in told


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pretrain.masks import parts
from pretrain.masks.__main__ import app
save, write, phase = parts._save, parts.write_store, sys.argv[2]
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def killed_after_two(path, part):
    save(path, part)
    if path.stem.endswith("1"):
        kill()
def killed_while_joining(folder, entries, manifest):
    write(folder, (kill() if number == 4 else e for number, e in enumerate(entries)), manifest)
if phase == "between parts":
    parts._save = killed_after_two
else:
    parts.write_store = killed_while_joining
app(sys.argv[3:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["between parts", "while they are joined"])
def test_a_killed_store_continues_to_the_same_bytes(phase, checkpoint, image_dir, tmp_path):
    words = ["--images", image_dir, "--checkpoint", checkpoint, "--device", "cpu", *KEYS]
    made(tmp_path / "whole", image_dir, *words[2:])
    cut = tmp_path / "m/cut"
    command = [sys.executable, "-c", KILLED, ROOT, phase, "make", cut, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = len(list((tmp_path / "m/cut.partial").glob("part_*.npz")))
    assert kept == (2 if phase == "between parts" else 3) and not cut.exists()
    made(cut, image_dir, *words[2:])
    assert content(cut) == content(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["cut"]


@pytest.mark.parametrize("left", ["nothing", "lock.json", "part_000001.npz", ".part_1.npz.9-f.tmp"])
def test_parts_without_a_manifest_are_what_a_kill_left(left, image_dir, tmp_path):
    made(tmp_path / "whole", image_dir, "source=grid")
    (tmp_path / "m/cut.partial").mkdir(parents=True)
    if left != "nothing":
        (tmp_path / "m/cut.partial" / left).write_text("{}")
    if left == "lock.json":  # of a process that is gone
        lock = {"attempt": "x", "host": os.uname().nodename, "pid": 2**22 + 1, "born": "1"}
        (tmp_path / "m/cut.partial/lock.json").write_text(json.dumps(lock))
    made(tmp_path / "m/cut", image_dir, "source=grid")
    assert content(tmp_path / "m/cut") == content(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["cut"]


def test_two_commands_do_not_make_one_store(image_dir, tmp_path):
    order = make_module.Order.read(str(image_dir), ["source=grid"], None, None)
    with make_module._alone(tmp_path / "own"):
        told = refused(tmp_path / "own", image_dir, "source=grid")
    assert f"is being worked on by pid {os.getpid()}" in told
    make_module.make_store(tmp_path / "own", order, DataRoots(tmp_path))


@pytest.mark.parametrize("other", ["source=crop", "source=grid"])
def test_what_another_command_made_before_the_lock_was_held_is_kept(
    other, image_dir, tmp_path, monkeypatch
):
    def other_first(folder):
        monkeypatch.undo()
        made(folder, image_dir, other)
        states.append((content(folder), (folder / "labels.bin").stat().st_ino))
        return make_module._alone(folder)

    states: list[object] = []
    monkeypatch.setattr(make_module, "_alone", other_first)
    if other == "source=crop":
        told = refused(tmp_path / "m/own", image_dir, "source=grid")
        assert "source is crop there and grid here" in told
    else:
        made(tmp_path / "m/own", image_dir, "source=grid")
    own = tmp_path / "m/own"
    assert states == [(content(own), (own / "labels.bin").stat().st_ino)]
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["own"]


def test_any_number_of_processes_makes_the_same_files(checkpoint, image_dir, tmp_path, in_turn):
    words = ["--checkpoint", checkpoint, *KEYS]
    made(tmp_path / "one", image_dir, *words)
    order = make_module.Order.read(str(image_dir), KEYS, checkpoint, None)
    listed = images(image_dir, DataRoots(tmp_path))
    work = make_module._bootstrapped(order, listed, torch.device("cpu"), 0)
    in_turn(2, lambda: work.make(tmp_path / "many"))
    assert content(tmp_path / "many") == content(tmp_path / "one")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["kmeans", "felzenszwalb"])
def test_two_processes_of_torchrun_make_the_bytes_of_one(source, checkpoint, image_dir, tmp_path):
    words = [f"source={source}"]
    if source == "kmeans":
        words += ["--checkpoint", checkpoint, *KEYS]
    made(tmp_path / "one", image_dir, *words)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += [f"--master-port={free_port()}", "-m", "pretrain.masks"]
    command = [sys.executable, *torchrun, "make", tmp_path / "two", "--images", image_dir]
    done = subprocess.run(
        [str(word) for word in [*command, *device_for(*words), *words]],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert done.stdout.count("complete") == 1  # one process prints the row


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "add --checkpoint FILE, or give a source that needs none"),
        (["source=grid", "--checkpoint", "x.pt"], "--checkpoint x.pt would change nothing"),
        (["source=grid", "--branch", "target"], "--branch target would change nothing"),
        (["source=grid", "max_clusters=8"], "max_clusters=8 would change nothing: leave it out"),
        (["source=grid", "max_cluster=8"], "unknown key 'max_cluster'; did you mean"),
        (["max_clusters=257"], "max_clusters: Input should be less than or equal to 256, got 257"),
        (["min_clusters=9", "max_clusters=8"], "min_clusters 9 exceeds max_clusters 8"),
        (["refine=crf", "metric=euclidean"], "refine='crf' weighs labels by cosine"),
        (["source=slic"], "source: Input should be 'kmeans', 'crop'"),
        (["seed=-1"], "seed: Input should be greater than or equal to 0, got -1"),
        (["grid"], "override 'grid' must look like key.sub=value"),
        (["source=ground_truth"], "source='ground_truth' needs annotations, and --images"),
        (["--checkpoint", "none.pt"], "none.pt: no such file"),
        (["source=boxes", "--device", "cuda:9"], "--device cuda:9 would change nothing: leave"),
        (["source=grid", "--workers", 99], "--workers 99 would change nothing: leave it out"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(words, told, image_dir, tmp_path):
    assert told in refused(tmp_path / "m/own", image_dir, *words)
    assert not (tmp_path / "m").exists()


def test_a_layer_that_the_network_lacks_is_refused_and_leaves_nothing(
    checkpoint, image_dir, tmp_path
):
    words = ["--checkpoint", checkpoint, "layers=['layer4.9']"]
    assert "layer4.9" in refused(tmp_path / "m/own", image_dir, *words)
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.parametrize("name", ["source=grid", "seed=3", "own.partial"])
def test_a_key_in_the_place_of_the_folder_is_named(name, image_dir, tmp_path):
    told = refused(tmp_path / name, image_dir, "source=grid")
    assert "is no name for a folder of masks" in told


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_store_is_never_written_over(kind, image_dir, tmp_path):
    place = image_dir if kind == "folder" else tmp_path / "notes.txt"
    if kind == "file":
        place.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert "holds no masks" in refused(place, image_dir, "source=grid")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_that_leads_nowhere_is_no_place_for_a_store(image_dir, tmp_path):
    (tmp_path / "m").mkdir()
    for link, store in (("own", "own"), ("own.partial", "own"), ("up", "up/own")):
        (tmp_path / "m" / link).symlink_to(tmp_path / "moved")
        told = refused(tmp_path / "m" / store, image_dir, "source=grid")
        assert f"{tmp_path / 'm' / link} is a broken link to {tmp_path / 'moved'}" in told
        (tmp_path / "m" / link).unlink()
    assert list((tmp_path / "m").iterdir()) == []


def test_a_store_below_a_file_is_refused(image_dir, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    told = refused(tmp_path / "notes.txt/deep/own", image_dir, "source=grid")
    assert f"{tmp_path / 'notes.txt'} is no folder. Give another STORE" in told


@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rule": None}, "rule should be a table, not None"),
        ({"rule": "x"}, "rule should be a table, not x"),
        ({"layers": [3]}, "layers should be a list of names, not [3]"),
    ],
)
def test_a_manifest_that_nothing_can_be_done_with_is_named_and_kept(
    values, told, state, image_dir, tmp_path
):
    made(tmp_path / "m/own", image_dir, "source=grid")
    place = tmp_path / "m" / ("own" if state == "finished" else "own.partial")
    (tmp_path / "m/own").rename(place)
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | values))
    before = content(place)
    said = refused(tmp_path / "m/own", image_dir, "source=grid")
    assert f"{place / 'manifest.json'}: {told}" in said
    assert content(place) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["source=grid"], "source is kmeans there and grid here"),
        ([*KEYS, "seed=1"], "seed is 0 there and 1 here"),
        ([*KEYS, "metric=euclidean"], "metric is cosine there and euclidean here"),
        ([*KEYS, "fit_every=2"], "fit_every is 1 there and 2 here"),
        ([*KEYS, "refine=crf"], "refine is none there and crf here"),
        ([*KEYS, "precision=bf16"], "precision is fp32 there and bf16 here"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_masks_made_otherwise_are_refused_and_kept(
    state, words, told, checkpoint, image_dir, tmp_path, monkeypatch
):
    own, network = tmp_path / "m/own", ["--checkpoint", checkpoint]
    if state == "unfinished":
        monkeypatch.setattr(parts, "write_store", lambda *_: (_ for _ in ()).throw(ValueError))
        refused(own, image_dir, *network, *KEYS)
        monkeypatch.undo()
        own = own.with_name("own.partial")
    else:
        made(own, image_dir, *network, *KEYS)
    before = content(own)
    if "source=grid" not in words:
        words = [*network, *words]
    said = refused(tmp_path / "m/own", image_dir, *words)
    assert told in said and f"delete {own} to make it anew" in said
    assert content(own) == before


def test_masks_fitted_on_fewer_points_are_not_taken_for_those_of_all(
    checkpoint, image_dir, tmp_path
):
    network = ["--checkpoint", checkpoint, *KEYS]
    made(tmp_path / "own", image_dir, *network, "fit_every=2")
    before = content(tmp_path / "own")
    assert "fit_every is 2 there and 1 here" in refused(tmp_path / "own", image_dir, *network)
    assert content(tmp_path / "own") == before


def test_masks_of_other_images_are_refused_and_kept(image_dir, tmp_path):
    made(tmp_path / "own", image_dir, "source=grid")
    before = content(tmp_path / "own")
    (image_dir / "image_03.png").unlink()
    assert "the images' id is" in refused(tmp_path / "own", image_dir, "source=grid")
    assert content(tmp_path / "own") == before


def test_other_annotations_are_other_masks(tmp_path):
    roots = write_coco(tmp_path / "coco")
    words = [SPEC, "--data", roots.root, "source=ground_truth"]
    made(tmp_path / "own", *words)
    write_coco(tmp_path / "coco", side=16)
    assert "annotations is" in refused(tmp_path / "own", *words)


@pytest.mark.parametrize(
    ("source", "module", "constant", "value", "told"),
    [
        ("felzenszwalb", sources, "FH_MIN_SIZE", 500, "min_size is 1000 there and 500 here"),
        ("felzenszwalb", sources, "FH_SIGMA", 0.5, "sigma is 0.8 there and 0.5 here"),
        ("boxes", boxes, "MAX_OVERLAP", 0.25, "max_overlap is 0.5 there and 0.25 here"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_other_settings_of_a_fixed_source_are_other_masks(
    source, module, constant, value, told, state, image_dir, tmp_path, monkeypatch
):
    words = [tmp_path / "own", image_dir, f"source={source}"]
    made(*words)
    if state == "unfinished":
        (tmp_path / "own").rename(tmp_path / "own.partial")
    monkeypatch.setattr(module, constant, value)
    assert told in refused(*words)


def forget_settings(place: Path) -> None:
    manifest = json.loads((place / "manifest.json").read_text())
    del manifest["settings"]
    (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("source", ["felzenszwalb", "boxes"])
def test_masks_from_before_settings_were_told_stay_valid(source, image_dir, tmp_path, monkeypatch):
    words = [tmp_path / "own", image_dir, f"source={source}"]
    made(*words)
    forget_settings(tmp_path / "own")
    before = content(tmp_path / "own")
    monkeypatch.setitem(sources.SOURCES, source, lambda _: pytest.fail("made again"))
    made(*words)
    assert content(tmp_path / "own") == before


def test_parts_from_before_settings_were_told_are_used(image_dir, tmp_path, monkeypatch):
    words = [image_dir, "source=felzenszwalb"]
    made(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_store", lambda *_: (_ for _ in ()).throw(ValueError))
        refused(tmp_path / "cut", *words)
    forget_settings(tmp_path / "cut.partial")
    monkeypatch.setitem(sources.SOURCES, "felzenszwalb", lambda _: pytest.fail("made again"))
    made(tmp_path / "cut", *words)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_keys_mean_what_they_mean_in_a_pretraining():
    cfg = make_module.MakeConfig()
    default = PretrainConfig()
    own = Bootstrap.build(cfg, seed=cfg.seed, epoch=0, precision="fp32")
    run = Bootstrap.build(default.method.masks, seed=default.seed, epoch=0, precision="fp32")
    assert own == run and cfg.precision == default.precision
    assert dataclasses.asdict(own)["max_clusters"] == 256
