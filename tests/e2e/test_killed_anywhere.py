"""A suite killed with SIGKILL in each stage in turn ends with the numbers of an undisturbed run."""

import json
import signal

import pytest

from tests.e2e.running import Suite, make_scenes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# (stage kind, instant, how often it passes first); in the order in which a run meets them
INSTANTS = [
    ("pretrain", "scalars", 2),  # in the warm-up epoch
    ("pretrain", "call:pretrain.masks.refresh:kmeans", 2),  # inside a mask refresh
    ("pretrain", "write:epoch_0002", 1),  # as the refreshed masks are moved into place
    ("pretrain", "scalars", 2),  # in a contrastive epoch
    ("pretrain", "write:last.pt", 3),  # inside a checkpoint write
    ("pretrain", "write:done.json", 1),  # when all is made but not yet said
    ("convert", "write:weights.pkl", 1),
    ("convert", "write:parity.json", 1),
    ("transfer", "scalars", 4),  # in fine-tuning
    ("transfer", "write:*.pt", 1),  # inside a detector's checkpoint write
    ("transfer", "write:predictions.json", 1),  # inside the evaluation
    ("transfer", "call:transfer.evaluators:evaluate", 1),
    ("transfer", "write:results.json", 1),
    ("fpn-*", "write:weights.pkl", 1),
    ("coco_fpn_twin-*", "scalars", 3),
    ("coco_fpn_twin-*", "write:predictions.json", 1),
    ("svm", "write:*.npy", 1),  # inside feature extraction
    ("svm", "write:results.json", 1),
    ("mask_quality", "write:results.json", 1),
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("scenes"), "--train", "48", "--test", "16")


def numbers(suite: Suite) -> list[tuple]:
    return [(r["row"], r["task"], r["metric"], r["value"]) for r in suite.results()]


def checkpoint_hashes(suite: Suite) -> dict[str, str]:
    found = {}
    for marker in suite.runs.glob("*/*/done.json"):
        items = json.loads(marker.read_text())["artifacts"]
        found |= {f"{marker.parent.name}/{n}": item["sha256"] for n, item in items.items()}
    return {n: sha for n, sha in found.items() if n.endswith(("/checkpoint", "/masks", "/weights"))}


def test_a_run_killed_everywhere_gives_the_same_table(scenes, tmp_path):
    undisturbed = Suite("twin", tmp_path / "undisturbed", scenes)
    done = undisturbed.launch()
    assert done.returncode == 0, done.stdout + done.stderr

    killed = Suite("twin", tmp_path / "killed", scenes)
    for kind, event, count in INSTANTS:
        died = killed.killed_at(kind, event, count)
        # the instant must have come, or the case tests nothing
        assert died.returncode == -signal.SIGKILL, (kind, event, died.stdout + died.stderr)
    done = killed.launch()
    assert done.returncode == 0, done.stdout + done.stderr

    assert numbers(killed) == numbers(undisturbed)
    assert len(numbers(killed)) == 19  # 8 numbers of either row, and 3 of the masks
    assert checkpoint_hashes(killed) == checkpoint_hashes(undisturbed)
    assert killed.table() == undisturbed.table()


def test_a_second_run_repeats_nothing(scenes, tmp_path):
    suite = Suite("twin", tmp_path / "runs", scenes)
    assert suite.launch().returncode == 0
    markers = {p: p.stat().st_mtime_ns for p in suite.runs.glob("*/*/done.json")}

    again = suite.launch()

    assert again.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in suite.runs.glob("*/*/done.json")} == markers
    assert "running" not in again.stdout
