"""Pickles of any origin: their tensors come out, and nothing that they name is called."""

import argparse
import collections
import dataclasses
import io
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sslbench.checkpoint import CheckpointError, load_backbone
from sslbench.checkpoint.reading import read_tensors
from sslbench.resnet import ResNet
from sslbench.rng import seeded


class History(dict):
    """A class that no reader knows, as a trainer's."""


State = collections.namedtuple("State", "params extra")


@pytest.fixture(scope="module")
def trunk():
    with seeded(0, "test"):
        return dict(ResNet(18, 0.125).state_dict())


def arrays(trunk, order="C", kind="<"):
    found = {}
    for name, value in trunk.items():
        array = value.numpy()
        found[name] = np.array(array, array.dtype.newbyteorder(kind), order=order)
    return found


def torch_bytes(content, new: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def numpy_bytes(content) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(content, dtype=object), allow_pickle=True)
    return file.getvalue()


def files(trunk):
    """Name -> bytes of files that hold the trunk beside objects of unknown classes."""
    strange = {"args": argparse.Namespace(lr=0.1), "history": History(loss=[1.0]), "s": {1, 2}}
    around = {"state_dict": collections.OrderedDict(trunk), **strange}
    found = {
        "torch archive": torch_bytes(around, new=True),
        "torch row of pickles": torch_bytes(around, new=False),
        "parameters": torch_bytes(
            {"model": {k: torch.nn.Parameter(v, False) for k, v in trunk.items()}, **strange}, True
        ),
        "numpy": numpy_bytes({"model": arrays(trunk)}),
        "Fortran order": pickle.dumps({"model": arrays(trunk, order="F")}),
        "big endian": pickle.dumps({"model": arrays(trunk, kind=">")}),
        "a dict of an unknown class": pickle.dumps(History(model=arrays(trunk))),
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = {"model": arrays(trunk), "__author__": "somebody", **strange}
        found[f"protocol {protocol}"] = pickle.dumps(content, protocol)
    return found


NAMES = tuple(files({"x": torch.zeros(1)}))


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_trunk_comes_out_bit_for_bit_where_pickles_are_allowed(name, trunk, tmp_path):
    found = load_backbone(written(tmp_path, files(trunk)[name]), allow_pickle=True)
    assert found.depth == 18
    for key, value in found.state.items():
        assert torch.equal(value, trunk[key])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("protocol 0", "protocol 1")])
def test_it_is_refused_with_the_way_out_where_they_are_not(name, trunk, tmp_path):
    with pytest.raises(CheckpointError, match=r"was not opened.*--allow-pickle"):
        load_backbone(written(tmp_path, files(trunk)[name]))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_large_arrays_are_read_in_every_protocol(protocol, tmp_path):
    """Old protocols copy them from text to bytes to numbers; that is no attack."""
    large = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    path = written(tmp_path, pickle.dumps({"a": large, "b": large[::-1].copy()}, protocol))
    assert np.array_equal(read_tensors(path, allow_pickle=True)["a"].numpy(), large)


@dataclasses.dataclass
class Recorded:
    """Pickles as the given call, as dill and jax write arrays and named tuples."""

    function: tuple[str, str]
    arguments: tuple


class AsCalls(pickle._Pickler):
    """Writes ``Recorded`` calls without the functions being there."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Recorded):
            self.write(pickle.GLOBAL + "{}\n{}\n".format(*obj.function).encode())
            self.save(obj.arguments)
            return self.write(pickle.REDUCE)
        return super().save(obj, save_persistent_id)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("dill._dill", "_create_array"),
        ("dill.dill", "_create_array"),
        ("jax._src.array", "_reconstruct_array"),
        ("jax._src.device_array", "reconstruct_device_array"),
    ],
)
def test_a_training_state_of_deepmind_is_read(module, name, trunk, tmp_path):
    """Named tuples spelled out, every array a call, as dill 0.4.1 and jax 0.10.2 write them."""
    fields = ("online_params", "online_state")
    make = Recorded(("dill._dill", "_create_namedtuple"), ("State", fields, "byol.experiment"))
    array = trunk["conv1.weight"].numpy()
    made, arguments, state = array.__reduce__()
    content = Recorded((module, name), (made, arguments, state, None))

    file = io.BytesIO()
    pickler = AsCalls(file, 2)
    pickler.write(pickle.PROTO + b"\x02}X\x05\0\0\0state")
    pickler.save(make)
    pickler.save(({"m": {"w": content}}, {"m": {"average": content}}))
    pickler.write(pickle.REDUCE + pickle.SETITEM + pickle.STOP)
    found = read_tensors(written(tmp_path, file.getvalue()), allow_pickle=True)["state"]
    assert list(found) == list(fields)
    assert np.array_equal(found["online_params"]["m"]["w"].numpy(), array)


def test_a_whole_pickled_network_is_its_state_dict(tmp_path):
    network = ResNet(18, 0.125)
    torch.save({"model": network, "epoch": 3}, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=r"class sslbench\.resnet\.ResNet.*--allow-pickle"):
        load_backbone(tmp_path / "network.pth")
    found = load_backbone(tmp_path / "network.pth", allow_pickle=True).state
    assert all(torch.equal(found[k], network.state_dict()[k]) for k in found)


def test_a_network_that_would_double_without_end_is_refused(tmp_path):
    network = torch.nn.Linear(2, 2)
    for _ in range(40):
        network = torch.nn.Sequential(network, network)
    torch.save(network, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match="more than 100,000 tensors"):
        load_backbone(tmp_path / "network.pth", allow_pickle=True)


class Planted:
    """Its unpickling would call a function of the system."""

    def __init__(self, function, *arguments) -> None:
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_planted_call_is_never_made(new, protocol, trunk, tmp_path):
    victim = tmp_path / "victim"
    calls = [
        Planted(os.system, f"touch {victim}"),
        Planted(os.mkdir, str(victim)),
        Planted(eval, f"open({str(victim)!r}, 'w')"),
        Planted(exec, f"open({str(victim)!r}, 'w')"),
        Planted(getattr, Path, "touch"),
        Planted(Path.touch, victim),
    ]
    file = io.BytesIO()
    torch.save(
        {"state_dict": trunk, "calls": calls},
        file,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=new,
    )
    found = load_backbone(written(tmp_path, file.getvalue()), allow_pickle=True)
    assert torch.equal(found.state["conv1.weight"], trunk["conv1.weight"])
    assert not victim.exists()


def refused(tmp_path, content: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(written(tmp_path, content), allow_pickle=True)
    return str(caught.value)


def test_what_would_grow_to_many_times_its_size_is_refused(tmp_path):
    """One long list, copied a million times by a few bytes each."""
    numbers = pickle.dumps(list(range(100_000)), 2)[2:-1]
    copied = b"\x80\x02(" + numbers + b"q\x00" + b"cbuiltins\nlist\nh\x00\x85R0" * 1000 + b"t."
    assert "many times its size" in refused(tmp_path, copied)


def test_an_archive_that_would_unpack_to_more_is_refused(tmp_path):
    import zipfile

    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({"a": History()}, 2))
        archive.writestr("bomb/version", "3")
        archive.writestr("bomb/data/0", b"\0" * 10_000_000)
    with pytest.raises(CheckpointError):
        read_tensors(path, allow_pickle=True)


def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path):
    content = torch_bytes({"state_dict": {"a": torch.ones(7)}, "h": History()}, new=False)
    size = pickle.dumps((7,), 2)[2:-1].split(b"\x85")[0] + b"\x85"
    assert content.count(size) == 1
    changed = content.replace(size, b"K\x70\x85")
    assert "beyond its numbers" in refused(tmp_path, changed)


def test_containers_nested_without_end_are_refused(tmp_path):
    deep = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
    assert "nests deeper" in refused(tmp_path, b"\x80\x02}X\x01\0\0\0a" + deep[2:-1] + b"s.")


def corrupted(content: bytes, generator: random.Random) -> bytes:
    """Flip, cut, repeat, insert or exchange a few bytes."""
    found = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        place, kind = generator.randrange(len(found)), generator.randrange(5)
        if kind == 0:
            found[place] = generator.randrange(256)
        elif kind == 1:
            del found[place : place + generator.randint(1, 40)]
        elif kind == 2:
            found[place:place] = found[place : place + generator.randint(1, 40)]
        elif kind == 3:
            found[place:place] = generator.choice((b"R", b"b", b"\x81", b"i", b"o", b"(", b"\x93"))
        else:
            found[place : place + 8] = generator.randbytes(8)
        found = found or bytearray(b"\x80")
    return bytes(found)


@pytest.mark.parametrize("seed", range(14))
def test_damaged_files_are_read_or_refused_and_never_run(seed, tmp_path, monkeypatch):
    """150 corruptions of every file; beside them the same with planted calls."""
    victim = tmp_path / "victim"
    small = {"conv1.weight": torch.arange(6.0)}
    kinds = files(small)
    planted = {"state_dict": small, "calls": [Planted(os.mkdir, str(victim))]}
    kinds["planted"] = torch_bytes(planted, new=bool(seed % 2))
    name, content = sorted(kinds.items())[seed]
    generator, outcomes = random.Random(seed), collections.Counter()
    for _ in range(150):
        path = written(tmp_path, corrupted(content, generator))
        try:
            read_tensors(path, allow_pickle=True)
            outcomes["read"] += 1
        except CheckpointError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 10, name
    assert not victim.exists()
