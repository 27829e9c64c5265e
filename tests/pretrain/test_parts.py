"""Parts of a mask generation: how they are shared, waited for, and mended."""

import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from pretrain.masks import parts
from pretrain.masks.parts import make_in_parts, parts_of
from pretrain.masks.store import MaskEntry
from sslbench import dist
from sslbench.log import RunLog
from tests.pretrain.test_masks_make import content, free_port

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = {"source": "grid", "images_id": "abc"}


class Maker:
    """Makes parts of one image each, and remembers which rank made which."""

    def __init__(self) -> None:
        self.made: dict[int, list[int]] = {}

    def __call__(self, numbers):
        for number in numbers:
            self.made.setdefault(dist.rank(), []).append(number)
            yield {number: MaskEntry(np.full((3, 2), number, np.uint8), 24, 16, 256, number)}


def finish(folder: Path, make, num_parts: int = 8) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with RunLog(folder.parent) as log:
        make_in_parts(folder, MANIFEST, num_parts, make, "masks", log)


def interrupt(folder: Path, monkeypatch) -> None:
    """Leave all eight parts of ``folder``, not joined."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts, "write_store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        finish(folder, Maker())


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_what_is_missing_not_what_there_was(world, tmp_path, in_turn, monkeypatch):
    """Of one rank's parts alone, as where the other's node was the faster one."""
    finish(tmp_path / "whole/m", Maker())
    folder, make = tmp_path / "cut/m", Maker()
    interrupt(folder, monkeypatch)
    lost = range(0, 8, world)
    for number in lost:
        (parts_of(folder) / f"part_{number:06d}.npz").unlink()
    in_turn(world, lambda: finish(folder, make))
    assert sorted(chain.from_iterable(make.made.values())) == list(lost)
    shares = [len(make.made.get(rank, [])) for rank in range(world)]
    assert max(shares) - min(shares) <= 1
    assert content(folder) == content(tmp_path / "whole/m")


@pytest.mark.parametrize("kept", [0, 40, -30])
def test_a_part_that_was_cut_short_is_made_anew_and_the_log_says_so(kept, tmp_path, monkeypatch):
    finish(tmp_path / "whole/m", Maker())
    folder, make = tmp_path / "cut/m", Maker()
    interrupt(folder, monkeypatch)
    part = parts_of(folder) / "part_000003.npz"
    part.write_bytes(part.read_bytes()[:kept])
    finish(folder, make)
    assert make.made == {0: [3]}
    assert content(folder) == content(tmp_path / "whole/m")
    said = (folder.parent / "log.txt").read_text()
    assert f"{part} cannot be read" in said and "it is made anew" in said


UNEQUAL = """
import datetime, os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from torch.distributed.distributed_c10d import _set_pg_timeout
from sslbench import dist
from tests.pretrain.test_parts import Maker, finish

class Slow(Maker):
    def __call__(self, numbers):
        for part in super().__call__(numbers):
            if dist.rank() == 1:
                if sys.argv[3] == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                if sys.argv[3] == "interrupted":  # it takes until the other has stopped
                    end = time.monotonic() + 60
                    while not stopped.exists() and time.monotonic() < end:
                        time.sleep(0.05)
                else:
                    time.sleep(3)
            yield part
        if dist.rank() == 0 and sys.argv[3] == "interrupted":
            global asked
            asked = time.monotonic() + 1
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()

stopped = Path(sys.argv[2] + ".stopped")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
try:
    with dist.process_group("cpu"):
        _set_pg_timeout(datetime.timedelta(seconds=1))
        finish(Path(sys.argv[2]), Slow(), num_parts=2)
except dist.PeerLostError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    stopped.parent.mkdir(parents=True, exist_ok=True)
    stopped.touch()
    sys.exit(f"stopped after {time.monotonic() - asked:.1f} s")
"""


def two_ranks(folder: Path, fate: str) -> list[tuple[int, str]]:
    """Run ``UNEQUAL``; exit code and words of both ranks."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", UNEQUAL, str(ROOT), str(folder), fate],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.mark.slow
def test_a_rank_waits_for_a_slower_one_beyond_the_timeout_of_collectives(tmp_path):
    ends = two_ranks(tmp_path / "m/two", "sleeps")
    assert [code for code, _ in ends] == [0, 0], ends
    finish(tmp_path / "one/m", Maker(), num_parts=2)
    assert content(tmp_path / "m/two") == content(tmp_path / "one/m")


@pytest.mark.slow
def test_a_rank_that_waits_notices_that_the_other_died(tmp_path):
    (code, said), _ = two_ranks(tmp_path / "m/two", "dies")
    assert code == 1 and "rank 0 of 2: another process of this run died" in said, said


@pytest.mark.slow
def test_a_rank_that_waits_obeys_a_signal_at_once(tmp_path):
    """The other would keep it waiting for a minute."""
    (code, said), _ = two_ranks(tmp_path / "m/two", "interrupted")
    told = re.search(r"stopped after ([\d.]+) s", said)
    assert code == 1 and told is not None, said
    assert float(told[1]) < 10
