"""Any honest file gives its trunk bit for bit; any other input is refused in one paragraph.

About 2,500 hostile inputs are tried here, beside those of ``test_checkpoint_pickles``.
"""

import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from code_bases import canonical, trunk
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file

from sslbench.checkpoint import Backbone, CheckpointError, inspect, load_backbone, state_digest

SMALL = trunk(1, 18)
WAY_OUT = re.compile(
    r"\b(pass|take|save|copy|download|use|choose|check|find|run|say|convert|read)\b", re.IGNORECASE
)
LIMIT_S = 10.0  # of one input, on a busy machine
pytestmark = pytest.mark.filterwarnings("ignore:.*(Sparse CSR|quantized tensor).*")


def tried(number: int) -> settings:
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


def judged(path: Path, branch: str = "online", allow_pickle: bool = False) -> Backbone | str:
    """The backbone, or our own error's text; anything else fails the test that calls."""
    begin = time.monotonic()
    try:
        found: Backbone | str = load_backbone(path, branch, allow_pickle)
    except CheckpointError as error:
        found = str(error)
        assert str(path) in found
        assert len(found.splitlines()) == 1
        assert len(found) < 6000
        assert WAY_OUT.search(found.replace(str(path), "")), found
    assert time.monotonic() - begin < LIMIT_S
    return found


def equals(found: Backbone | str, state: dict[str, torch.Tensor]) -> bool:
    assert isinstance(found, Backbone), found
    wanted = canonical(state)
    return list(found.state) == list(wanted) and all(
        torch.equal(found.state[k], v) for k, v in wanted.items()
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files") / "file.pth"


# Honest files.

names = st.from_regex(r"[a-z][a-z0-9_]{0,7}", fullmatch=True).filter(
    lambda name: name not in ("module", "optim", "scheduler")
)
prefixes = st.lists(names, max_size=3).map(lambda parts: "".join(f"{p}." for p in parts))
wrappers = st.lists(st.sampled_from(("module.", "_orig_mod.")), max_size=4).map("".join)
containers = st.lists(names, max_size=3)


def laid(value: torch.Tensor, how: int, shared: torch.Tensor) -> torch.Tensor:
    """The same numbers in another storage or with other strides."""
    if how == 1 and value.ndim > 1:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if how == 2 and value.ndim:
        return torch.stack((value, value), -1)[..., 1]
    if how == 3 and value.ndim == 4:
        return value.to(memory_format=torch.channels_last)
    if how == 4 and value.is_floating_point():
        place = shared[: value.numel()]  # the start of a storage that others share
        return place.copy_(value.flatten()).view(value.shape)
    return value


@given(prefixes, wrappers, containers, st.randoms(use_true_random=False))
@tried(40)
def test_a_trunk_comes_out_of_any_prefix_wrapper_container_order_and_strides(
    path: Path, prefix: str, wrapper: str, container: list[str], chance: random.Random
):
    order = sorted(SMALL, key=lambda _: chance.random())
    flat = torch.zeros(sum(v.numel() for v in SMALL.values()))
    content: Any = {}
    for name in order:
        value, how = SMALL[name], chance.randrange(5)
        own = laid(value, how, flat)
        flat = flat[value.numel() :] if own.data_ptr() == flat.data_ptr() else flat
        content[wrapper + prefix + name] = own
    for part in container[::-1]:
        content = {part: content, "epoch": 3}
    torch.save(content, path)
    place = "/".join(container)
    in_main = place in ("", "state_dict", "model", "model_state_dict")
    found = judged(path, ("" if in_main else f"{place}/") + prefix or ".")
    assert equals(found, SMALL)
    assert found.prefix == ("" if in_main else f"{place}/") + prefix


@given(st.sampled_from((18, 34, 50, 101)), st.sampled_from((0.125, 0.25, 0.375)), st.booleans())
@tried(10)
def test_depth_width_and_branch_are_found_in_any_order(
    path: Path, depth: int, width: float, target_first: bool
):
    online, target = trunk(1, depth, width), trunk(2, depth, width)
    parts = [("encoder_q.", online), ("encoder_k.", target)][:: -1 if target_first else 1]
    torch.save({"state_dict": {f"module.{p}{k}": v for p, s in parts for k, v in s.items()}}, path)
    for branch, state in (("online", online), ("target", target)):
        found = judged(path, branch)
        assert equals(found, state)
        assert (found.depth, found.width) == (depth, width)


@given(st.sampled_from(("torch", "old torch", "safetensors", "numpy")), st.booleans())
@tried(10)
def test_loading_what_was_loaded_and_saved_changes_nothing(path: Path, how: str, counters: bool):
    torch.save(SMALL if counters else canonical(SMALL), path)
    first = judged(path)
    state = dict(first.state) | dict(first.counters)
    if how == "safetensors":
        save_file(state, path)
    elif how == "numpy":
        path.write_bytes(pickle.dumps({k: v.numpy() for k, v in state.items()}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    second = judged(path, allow_pickle=how == "numpy")
    assert equals(second, SMALL)
    assert state_digest(first.state) == state_digest(second.state)
    assert first.counters.keys() == second.counters.keys()


OTHER_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int8, torch.int64),
    *(torch.uint8, torch.bool, torch.float8_e4m3fn),
)


@given(
    st.dictionaries(
        st.sampled_from(list(canonical(SMALL))), st.sampled_from(OTHER_DTYPES), min_size=1
    )
)
@tried(40)
def test_any_other_dtype_is_refused_and_a_tensor_of_it_named(
    path: Path, dtypes: dict[str, torch.dtype]
):
    torch.save(SMALL | {k: SMALL[k].to(dtype) for k, dtype in dtypes.items()}, path)
    found = judged(path)
    assert any(f"{name} is {dtype}" in found for name, dtype in dtypes.items())


@given(st.sampled_from(list(canonical(SMALL))), st.sampled_from((np.nan, np.inf, -np.inf)))
@tried(30)
def test_one_number_that_is_not_finite_is_refused_and_its_tensor_named(path, name, number):
    value = SMALL[name].clone()
    value.view(-1)[-1] = number
    torch.save(SMALL | {name: value}, path)
    assert f"{name} holds NaN or infinite" in judged(path)


# Hostile structure.


def strange_values(value: torch.Tensor) -> dict[str, Any]:
    """What may stand in a tensor's place."""
    itself: dict[str, Any] = {}
    itself["itself"] = itself
    grown: list[Any] = []
    grown.append(grown)
    return {
        **{"text": "conv", "none": None, "number": 7, "huge number": 10**5000, "list": [value]},
        **{"scalar": torch.ones(()), "empty": torch.empty(0), "empty 4d": torch.empty(0, 3, 7, 7)},
        "expanded": torch.zeros(1).expand(10**9, 3, 7, 7),
        "expanded as it was": torch.ones(1).expand(value.shape or (9,)),
        "meta": torch.empty(value.shape, device="meta"),
        "sparse": value.float().to_sparse(),
        "sparse rows": torch.eye(3).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        "complex": value.to(torch.complex64),
        "bool": value > 0,
        "one axis more": value[None],
        "contains itself": itself,
        "list in itself": grown,
        "mapping": {"weight": value},
        "parameter": torch.nn.Parameter(value.float()),
    }


with warnings.catch_warnings(action="ignore"):
    KINDS = sorted(strange_values(torch.ones(1)))
STRANGE_KEYS = (
    *("", ".", "..", "/", "../../etc/passwd", "a\nb", "\x00", "ключ", "\u2028", "k" * 100_000),
    *("module.", "_orig_mod.", "conv1.weight.", ".conv1.weight", "layer1..conv1.weight", "format"),
    *("arch", "version", "metadata", "__author__", "meta", "state_dict", "model", "0.weight"),
    *(0, -1, 2**70, 1.5, None, True, ("conv1", "weight"), (("a",), "b"), b"conv1.weight"),
    *("initial_conv", "x/mean_ema", "res_net50/~/initial_conv/w", "layer1.0.se.fc1.weight"),
)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("replace"), st.sampled_from(list(SMALL)), st.sampled_from(KINDS)),
        st.tuples(st.just("add"), st.sampled_from(STRANGE_KEYS), st.sampled_from(KINDS)),
        st.tuples(st.just("drop"), st.sampled_from(list(SMALL)), st.none()),
        st.tuples(st.just("rename"), st.sampled_from(list(SMALL)), st.sampled_from(STRANGE_KEYS)),
        st.tuples(st.just("contain"), st.sampled_from(STRANGE_KEYS), st.none()),
        st.tuples(st.just("beside"), st.sampled_from(STRANGE_KEYS), st.sampled_from(KINDS)),
    ),
    min_size=1,
    max_size=4,
)


def changed(steps: list[tuple[str, Any, Any]]) -> Any:
    inner: dict[Any, Any] = dict(SMALL)
    top: dict[Any, Any] = inner
    for what, key, other in steps:
        if what == "replace":
            inner[key] = strange_values(SMALL[key])[other]
        elif what == "add":
            inner[key] = strange_values(torch.ones(3))[other]
        elif what == "drop":
            inner.pop(key, None)
        elif what == "rename":
            inner[other] = inner.pop(key, None)
        elif what == "contain":
            top = {key: top}
        else:
            top[key] = strange_values(torch.ones(3))[other]
    return top


@given(changes, st.sampled_from(("online", "online", "target", ".", "", "a.b", "model/", "/")))
@tried(300)
def test_strange_structure_gives_the_right_trunk_or_our_error(path: Path, steps: Any, branch: str):
    torch.save(changed(steps), path)
    found = judged(path, branch)
    assert isinstance(found, str) or equals(found, SMALL)


@given(changes)
@tried(40)
def test_strange_structure_can_be_inspected_and_printed(path: Path, steps: Any):
    torch.save(changed(steps), path)
    try:
        assert json.dumps(inspect(path), default=str)
    except CheckpointError as error:
        assert str(path) in str(error)


def nested(depth: int) -> bytes:
    """Dicts in dicts as a pickle, which the pickling module itself could not write."""
    return b"\x80\x02" + b"}X\x01\0\0\0a" * depth + b"}" + b"s" * depth + b"."


def fan(width: int, depth: int) -> dict[str, Any]:
    """A small file whose containers stand in ``width ** depth`` places."""
    found: dict[str, Any] = {"x": torch.ones(1)}
    for _ in range(depth):
        found = {str(i): found for i in range(width)}
    return found


def hashed_for_ages() -> bytes:
    """A tuple of tuples, 60 deep, each named twice, as a key."""
    doubled = b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
    return b"\x80\x02}K\x01" + doubled + b"K\x02s."


def as_archive(pickled: bytes, **records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3", **records}.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def as_row(pickled: bytes) -> bytes:
    head = (pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return b"".join(head) + pickled + pickle.dumps([], 2)


def big_files() -> Iterator[tuple[str, bytes]]:
    one = torch.ones(1)
    marks = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight")
    for name, content in {
        "many trunks": {f"p{i}.{mark}": one for i in range(500) for mark in marks},
        "many keys": dict.fromkeys((f"backbone.k{i}.weight" for i in range(100_000)), one)
        | {f"backbone.{k}": v for k, v in SMALL.items()},
        "fan": fan(8, 8),
        "fan of lists": {"l": [fan(4, 9)] * 50},
    }.items():
        saved = io.BytesIO()
        torch.save(content, saved)
        yield name, saved.getvalue()
    for name, pickled in {"deep": nested(1000), "deeper": nested(50_000)}.items():
        yield name, pickled
        yield f"{name} archive", as_archive(pickled)
        yield f"{name} row", as_row(pickled)
    for name, make in {"archive": as_archive, "row": as_row, "pickle": bytes}.items():
        yield f"hashed {name}", make(hashed_for_ages())


BIG = dict(big_files())


@pytest.mark.slow
@pytest.mark.parametrize("name", BIG)
def test_what_is_deep_wide_or_endless_is_refused_in_seconds(name, path: Path):
    path.write_bytes(BIG[name])
    for allow_pickle in (False, True)[: 1 if name.startswith("many") else 2]:
        assert isinstance(judged(path, allow_pickle=allow_pickle), str)


# Hostile bytes.

VICTIM = "planted_by_a_pickle"
CALLS = (b"cos\nmkdir\n", b"cbuiltins\neval\n", b"cbuiltins\nexec\n", b"csubprocess\nPopen\n")
GLOBALS = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"cbuiltins\nbytearray\n",
    b"cbuiltins\nset\n",
    b"c_codecs\nencode\n",
    b"cnumpy\ndtype\n",
    b"cnumpy._core.multiarray\n_reconstruct\n",
    b"cnumpy._core.multiarray\nscalar\n",
    b"cargparse\nNamespace\n",
    b"ctorch.nn.parameter\nParameter\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"cdill._dill\n_create_namedtuple\n",
)
text = f"X{chr(len(VICTIM))}\0\0\0{VICTIM}".encode()
operations = st.sampled_from(
    (
        *CALLS,
        *CALLS,
        *GLOBALS,
        *(text, text + b"\x85R", b"\x85", b"\x86", b"\x87", b"R", b"R", b"b", b"\x81", b"Q", b"("),
        *(b"t", b")", b"}", b"]", b"l", b"d", b"e", b"a", b"s", b"u", b"N", b"\x88", b"K\x07"),
        *(b"J\xff\xff\xff\x7f", b"X\0\0\0\0", b"0", b"1", b"2", b"q\0", b"h\0", b"\x8f", b"\x90"),
        *(b"\x8c\x01a", b"\x93", b"i", b"o", b"cos\nmkdir\n(" + text + b"tR", b"\x8a\x01\x05"),
        *(b"B\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x95" + b"\xff" * 8),
        *(b"G@\x08\0\0\0\0\0\0", b"V\\u0041\n", b"I99\n", b"\x82\x01", b"P1\n", b"\x97", b"\x92"),
    )
)


@given(
    st.lists(operations, max_size=25).map(b"".join),
    st.sampled_from((as_archive, as_row, bytes)),
    st.booleans(),
)
@tried(1200)
def test_random_programs_of_pickles_are_refused_and_never_run(path, program, make, allow_pickle):
    path.write_bytes(make(b"\x80\x02" + program + b"."))
    found = judged(path, allow_pickle=allow_pickle)
    assert isinstance(found, str)
    assert not Path(VICTIM).exists()


def forms() -> dict[str, bytes]:
    """The trunk in each kind of file."""
    found = {}
    for name, is_new in (("archive", True), ("row", False)):
        file = io.BytesIO()
        torch.save({"state_dict": SMALL}, file, _use_new_zipfile_serialization=is_new)
        found[name] = file.getvalue()
    found["safetensors"] = safetensors_bytes(SMALL)
    found["pickle"] = pickle.dumps({"model": {k: v.numpy() for k, v in SMALL.items()}})
    return found


FORMS = forms()


@pytest.mark.parametrize("name", FORMS)
def test_a_file_cut_anywhere_is_refused(name: str, path: Path):
    for part in range(50):
        path.write_bytes(FORMS[name][: len(FORMS[name]) * part // 50])
        assert isinstance(judged(path, allow_pickle=bool(part % 2)), str)


@pytest.mark.parametrize("name", FORMS)
def test_a_file_with_a_hole_is_refused(name: str, path: Path):
    """As a download leaves that was given its whole size at once."""
    size = len(FORMS[name])
    for part in range(1, 9):
        begin, end = size * part // 10, size * part // 10 + 4096
        path.write_bytes(FORMS[name][:begin] + bytes(end - begin) + FORMS[name][end:])
        found = judged(path, allow_pickle=True)
        # a row or safetensors has no check sums: its zeros are zeros, if they are accepted
        assert isinstance(found, str) or name != "archive"


def flipped(content: bytes, chance: random.Random, within: int) -> bytes:
    found = bytearray(content)
    for _ in range(chance.randint(1, 5)):
        place, kind = chance.randrange(min(len(found), within)), chance.randrange(4)
        if kind == 0:
            found[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del found[place : place + chance.randint(1, 30)]
        elif kind == 2:
            found[place:place] = chance.randbytes(chance.randint(1, 30))
        else:
            found[place : place + 8] = chance.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7))
    return bytes(found)


@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_head_or_tail_is_refused_or_harmless(name: str, path: Path):
    """The pickle, the table or the directory, where all of a file's structure stands."""
    chance = random.Random(name)
    for number in range(110):
        content = FORMS[name]
        if name == "archive" and number % 2:  # the directory stands at the end
            tail = len(content) - 12_000
            content = content[:tail] + flipped(content[tail:], chance, 12_000)
        else:
            content = flipped(content, chance, 20_000)
        path.write_bytes(content)
        judged(path, allow_pickle=bool(number % 3))


def safetensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BROKEN_TABLES = (
    *({"a": entry()}, {"a": entry(), "b": entry()}, {"a": entry(offsets=(0, 4))}),
    *({"a": entry(offsets=(8, 0))}, {"a": entry(offsets=(-8, 0))}, {"a": entry("F99")}),
    *({"a": entry(shape=(2**62, 2**62))}, {"a": entry(shape=(-2,))}, {"a": entry(offsets=(4, 12))}),
    *({"a": entry(offsets=(0, 2**63))}, {"a": 1}, {"a": []}, [], {}, {"__metadata__": 1}),
    *({"__metadata__": {"a": [1]}}, {"a": {"dtype": "F32"}}, b"{", b"{" * 5000, b'{"a":1e999}'),
    *(b'{"a":' * 20_000, b"{\xff\xfe}", b'{"a":{},"a":{}}', {"": entry()}, {"a\nb": entry()}),
    {f"k{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(20_000)},
)


@pytest.mark.parametrize("length", [None, 0, 1, 10, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_broken_table_of_safetensors_is_refused(length, path: Path):
    for table in BROKEN_TABLES:
        path.write_bytes(safetensors_file(table, bytes(8), length))
        assert isinstance(judged(path, allow_pickle=True), str)


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def numpy_bytes(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


PICKLED = pickle.dumps({"a": 1}, 2)
NO_CHECKPOINTS = {
    "nothing": b"",
    "one byte": b"\x80",
    "a full stop": b".",
    "text": b"learning_rate: 0.1\n" * 100,
    "text in Russian": "скорость\n".encode() * 100,
    "utf-16": "text".encode("utf-16") * 100,
    "a web page": b"\n <!DOCTYPE html>\n<html>404</html>",
    "json": b'{"weight": [1, 2]}',
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "zeros": bytes(10_000),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "tar": b"data".ljust(257, b"\0") + b"ustar" + bytes(500),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "elf": b"\x7fELF" + bytes(100),
    "npz": npz_bytes(),
    **{
        f"array of {dtype}": numpy_bytes(np.ones(3, dtype))
        for dtype in ("f4", "f8", "i8", "c8", "?", "U3", "S3", "M8[s]", "f4,i4", "V8")
    },
    "array of objects": numpy_bytes(np.array([1, None], dtype=object)),
    "one object": numpy_bytes(np.array({"a": 1}, dtype=object)),
    "endless array": numpy_bytes(np.ones(3)).replace(b"(3,)", b"(9" + b"9" * 300 + b",)"),
    "array of a call": numpy_bytes(np.ones(3)).replace(b"'<f8'", b"os.getcwd()"),
    "empty zip": zip_of({}),
    "zip of a text": zip_of({"a.txt": b"a"}),
    "absolute names": zip_of({"/data.pkl": PICKLED, "/etc/passwd": b"x"}),
    "names above": zip_of({"../data.pkl": PICKLED, "../data/0": b"x"}),
    "two pickles": zip_of({"a/data.pkl": PICKLED, "b/data.pkl": PICKLED}),
    "no storages": as_archive(PICKLED, byteorder=b"little"),
    "big endian": as_archive(PICKLED, byteorder=b"big"),
    "deflated": zip_of({"a/data.pkl": PICKLED, "a/version": b"3"}, zipfile.ZIP_DEFLATED),
    "bzip2": zip_of({"a/data.pkl": PICKLED, "a/version": b"3"}, zipfile.ZIP_BZIP2),
    "lzma": zip_of({"a/data.pkl": PICKLED, "a/version": b"3"}, zipfile.ZIP_LZMA),
    "torchscript": zip_of({"a/data.pkl": PICKLED, "a/constants.pkl": b"", "a/code/x.py": b"1"}),
}


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused(name: str, allow_pickle: bool, path: Path):
    path.write_bytes(NO_CHECKPOINTS[name])
    assert isinstance(judged(path, allow_pickle=allow_pickle), str)


def test_a_pipe_and_a_name_that_is_too_long_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe" in judged(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not readable: File name too long"):
        load_backbone(tmp_path / ("x" * 5000))


def test_a_name_with_a_newline_still_gives_one_paragraph(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        load_backbone(tmp_path / "a\nb.pth")
    assert "\n" not in str(caught.value)


# What would need more memory or time than the file is worth.

BOMBS = """
import io, sys, pickle, zipfile, time
from pathlib import Path
import torch
from sslbench.checkpoint import CheckpointError, load_backbone

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) // 1024

before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    for allow_pickle in (False, True):
        begin = time.monotonic()
        try:
            load_backbone(path, allow_pickle=allow_pickle)
            print(path.name, "was read")
        except CheckpointError:
            pass
        spent, grown = time.monotonic() - begin, peak() - before
        if spent > 10 or grown > 200:
            print(path.name, allow_pickle, f"{spent:.1f} s, {grown} MiB")
"""


def write_bombs(folder: Path) -> None:
    zeros = bytes(400 << 20)
    small = io.BytesIO()
    torch.save({"a": torch.ones(7)}, small)
    with zipfile.ZipFile(small) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    (folder / "pickle").write_bytes(zip_of(records | {pickled: zeros}, zipfile.ZIP_DEFLATED))
    tensor = pickled.replace("data.pkl", "data/0")
    (folder / "tensor").write_bytes(zip_of(records | {tensor: zeros}, zipfile.ZIP_DEFLATED))
    wide = {k: torch.ones(()).expand(v.shape) for k, v in meta_trunk(width=16).items()}
    torch.save(wide, folder / "expanded")
    billion = b"J\xff\xff\xff\x7f"
    made = b"\x80\x02cbuiltins\nbytearray\n" + billion + b"\x85R."
    (folder / "bytes").write_bytes(as_archive(made))
    (folder / "bytes row").write_bytes(as_row(made))
    content = io.BytesIO()
    torch.save({"a": torch.ones(7)}, content, _use_new_zipfile_serialization=False)
    (folder / "row").write_bytes(content.getvalue().replace(b"K\x07", billion))
    (folder / "copies").write_bytes(
        b"\x80\x02(" + b"N" * 100_000 + b"lq\0" + b"cbuiltins\nlist\nh\0\x85R0" * 20_000 + b"t."
    )
    (folder / "network").write_bytes(shared_network())
    flat = torch.ones(2 << 20)
    many = {f"v{i}": flat.view(-1) for i in range(1000)} | {"unknown": Fraction(1, 2)}
    torch.save(many, folder / "views", _use_new_zipfile_serialization=False)
    (folder / "table").write_bytes(struct.pack("<Q", 90 << 20) + b"{" + b" " * (91 << 20))


def shared_network() -> bytes:
    """A module whose two parts are one module, whose two parts are one module ..., 30 deep."""
    module = torch.nn.Module()
    module.register_buffer("x", torch.ones(1))
    for _ in range(30):
        outer = torch.nn.Module()
        outer.a = outer.b = module
        module = outer
    file = io.BytesIO()
    torch.save(module, file)
    return file.getvalue()


def meta_trunk(width: float) -> dict[str, torch.Tensor]:
    from sslbench.resnet import ResNet

    with torch.device("meta"):
        return dict(ResNet(50, width).state_dict())


@pytest.mark.slow
def test_bombs_need_neither_memory_nor_time(tmp_path: Path):
    write_bombs(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
