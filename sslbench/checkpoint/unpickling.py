"""Pickles of any origin, read without importing or calling anything that they name.

``pickle`` is a program that may call any function. Here only arrays, tensors and plain containers
are built, by what stands in ``BUILDERS``; every other class and function becomes an ``Unknown``
that remembers what it was given. Work and memory stay in proportion to the file.
"""

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

Scalar = str | bytes | int | float | bool | None  # keys of dicts; nested tuples can hash for ages
COPIES = 4  # of the whole file: old protocols keep an array as text, then bytes, then numbers
MAX_COPIED = 1 << 20  # items that pickles may have copied from list to list, beyond the file's size


class ForeignPickleError(ValueError):
    """A pickle that is damaged, or does what no checkpoint needs."""


@dataclass(eq=False)
class Unknown:
    """An object of a class that is not built, with whatever the pickle put into it."""

    name: str
    arguments: tuple[Any, ...] = ()
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(eq=False)
class PickledDtype:
    """A NumPy dtype: its kind and size, and its byte order."""

    code: str
    order: str = "="

    def of_numpy(self) -> np.dtype[Any]:
        """Make the real one; only numbers have one."""
        is_number = self.code[:1] in "fiub" and self.code[1:].isdigit()
        if not is_number or self.order not in ("<", ">", "="):
            raise ForeignPickleError(f"it has an array of dtype {self.code!r}")
        return np.dtype(("" if self.order == "=" else self.order) + self.code)


@dataclass(eq=False)
class PickledArray:
    """A NumPy array, also before its content has come."""

    values: Any = None  # a tensor; of an array of objects the list


@dataclass(frozen=True, eq=False)
class TupleClass:
    """A named tuple's class, as dill spells it out; its instances become dicts."""

    fields: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """Something that may be called; an object, so that no pickle can change it."""

    call: Callable[..., Any]


def array(content: Any, dtype: PickledDtype, shape: Any, is_fortran: Any) -> Tensor:
    """Make a tensor of an array's bytes, in this machine's byte order."""
    content = content.encode("latin1") if isinstance(content, str) else content  # of Python 2
    flat = np.frombuffer(content, dtype.of_numpy())
    shaped = flat.reshape(tuple(int(n) for n in shape), order="F" if is_fortran else "C")
    return torch.from_numpy(shaped.astype(shaped.dtype.newbyteorder("="), order="C"))


def _dtype(code: Any, *_: Any) -> PickledDtype:
    return PickledDtype(code.name.rpartition(".")[2] if isinstance(code, Unknown) else str(code))


def _scalar(dtype: PickledDtype, content: Any = b"") -> Any:
    return array(content, dtype, (), False).item()


def _from_buffer(content: Any, dtype: PickledDtype, shape: Any, order: Any = "C") -> PickledArray:
    return PickledArray(array(content, dtype, shape, order == "F"))


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8"):
        raise ForeignPickleError(f"it has bytes encoded as {encoding!r}")
    return text.encode(encoding)


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return pairs
    made: dict[Any, Any] = {}
    for key, value in pairs:
        put(made, key, value)
    return made


def _defaults(_factory: Any = None, pairs: Any = ()) -> dict[Any, Any]:
    return _mapping(pairs)


def _sequence(items: Any = ()) -> Any:
    return items if isinstance(items, list) else list(items)


def _first(value: Any, *_: Any) -> Any:
    return value


def _array(*_: Any) -> PickledArray:
    return PickledArray()


def _array_with_state(_make: Any, _arguments: Any, state: Any, *_: Any) -> PickledArray:
    made = PickledArray()
    give_state(made, state)
    return made


def _tuple_class(_name: Any, fields: Any, *_: Any) -> TupleClass:
    return TupleClass(tuple(map(str, fields)))


NUMPY = ("numpy.core", "numpy._core")
DILL = ("dill._dill", "dill.dill")
BUILTINS = ("builtins", "__builtin__")
BUILDS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _defaults,
    "_codecs.encode": _encoded,
    "numpy.dtype": _dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    # DeepMind's checkpoints: jax's arrays, then and now, and what dill makes of arrays and tuples
    "jax._src.array._reconstruct_array": _array_with_state,
    "jax._src.device_array.reconstruct_device_array": _array_with_state,
    **{f"{n}._create_array": _array_with_state for n in DILL},
    **{f"{n}._create_namedtuple": _tuple_class for n in DILL},
    **{f"{n}.dict": _mapping for n in BUILTINS},
    **{f"{n}.{kind}": _sequence for n in BUILTINS for kind in ("list", "set", "frozenset")},
    **{f"{n}.multiarray._reconstruct": _array for n in NUMPY},
    **{f"{n}.multiarray.scalar": _scalar for n in NUMPY},
    **{f"{n}.numeric._frombuffer": _from_buffer for n in NUMPY},
}
BUILDERS = {name: Function(call) for name, call in BUILDS.items()}


def put(target: Any, key: Any, value: Any) -> None:
    """Set an item of a dict-like object; what only a tuple or an object names is left out."""
    pairs = target.pairs if isinstance(target, Unknown) else target
    if not isinstance(pairs, dict):
        raise ForeignPickleError(f"it sets an item of a {type(target).__name__}")
    if isinstance(key, Scalar):
        pairs[key] = value


def extend(target: Any, items: list[Any]) -> None:
    """Append to a list-like object."""
    held = target.items if isinstance(target, Unknown) else target
    if not isinstance(held, list):
        raise ForeignPickleError(f"it appends to a {type(target).__name__}")
    held.extend(items)


def give_state(target: Any, state: Any) -> None:
    """Give an object its state; a plain container needs none."""
    if isinstance(target, Unknown):
        target.state = state
    elif isinstance(target, PickledDtype):  # (version, byte order, ...)
        target.order = "=" if state[1] in ("|", "=") else str(state[1])
    elif isinstance(target, PickledArray):
        _, shape, dtype, is_fortran, content = state
        plain = isinstance(content, list)
        target.values = content if plain else array(content, dtype, shape, is_fortran)


class _Bounded:
    """The file under ``pickle``: no read makes more than the file still holds."""

    def __init__(self, data: memoryview, start: int) -> None:
        self.data, self.place = data, start

    def read(self, count: int) -> bytes:
        """Return so many bytes, or what is left."""
        found = bytes(self.data[self.place : self.place + max(count, 0)])
        self.place += len(found)
        return found

    def readline(self) -> bytes:
        """Return what comes up to and with the next newline."""
        size = 256
        while True:
            found = bytes(self.data[self.place : self.place + size])
            end = found.find(b"\n") + 1
            if end or len(found) < size:
                return self.read(end or len(found))
            size *= 2


IN_PYTHON: Any = vars(pickle)["_Unpickler"]  # pickle's own, whose operations can be replaced


class _Unpickler(IN_PYTHON):  # type: ignore[misc]
    """Every operation is replaced that would call, look up or hash."""

    dispatch: ClassVar[dict[int, Any]] = dict(IN_PYTHON.dispatch)

    def __init__(self, file: _Bounded, builders: dict[str, Function], stored: Any) -> None:
        super().__init__(file)
        self.builders, self.stored = builders, stored
        self.to_copy = COPIES * len(file.data) + MAX_COPIED

    def find_class(self, module: str, name: str) -> Any:
        """Return a builder, or what stands for the class; nothing is imported."""
        full = f"{module}.{name}"
        return self.builders.get(full) or Unknown(full)

    def persistent_load(self, saved_id: Any) -> Any:
        """Return what torch keeps beside the pickle."""
        if self.stored is None:
            raise ForeignPickleError("it refers to data outside of itself")
        return self.stored(saved_id)

    def called(self, function: Any, arguments: Any) -> Any:
        """Stand for calling a class or a function."""
        if isinstance(function, Unknown):
            return Unknown(function.name, tuple(arguments))
        if isinstance(function, TupleClass):
            return dict(zip(function.fields, arguments, strict=False))
        if not isinstance(function, Function):
            raise ForeignPickleError(f"it calls a {type(function).__name__}")
        self.charge(sum(map(_weight, arguments)))
        return function.call(*arguments)

    def charge(self, copied: int) -> None:
        """Count what was copied; a pickle can copy one thing a million times by a few bytes."""
        self.to_copy -= copied
        if self.to_copy < 0:
            raise ForeignPickleError("it would grow to many times its size")


def _reduce(self: _Unpickler) -> None:
    arguments = self.stack.pop()
    self.stack[-1] = self.called(self.stack[-1], arguments)


def _new_with_keywords(self: _Unpickler) -> None:
    self.stack.pop()
    _reduce(self)


def _object(self: _Unpickler) -> None:
    function, *arguments = self.pop_mark()
    self.append(self.called(function, arguments))


def _instance(self: _Unpickler) -> None:
    module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
    self.append(self.called(self.find_class(module, name), self.pop_mark()))


def _build(self: _Unpickler) -> None:
    state = self.stack.pop()
    self.charge(_weight(state) if isinstance(state, tuple) else 0)
    give_state(self.stack[-1], state)


def _weight(value: Any) -> int:
    """How much a call may copy of what it is given; an array's state has its content inside."""
    inner = value[4] if isinstance(value, tuple) and len(value) == 5 else value
    return len(inner) if isinstance(inner, str | bytes | list | dict | tuple) else 0


def _dict(self: _Unpickler) -> None:
    items = self.pop_mark()
    self.append({})
    _put_all(self, items)


def _set_item(self: _Unpickler) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    put(self.stack[-1], key, value)


def _set_items(self: _Unpickler) -> None:
    _put_all(self, self.pop_mark())


def _put_all(self: _Unpickler, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        put(self.stack[-1], key, value)


def _append(self: _Unpickler) -> None:
    item = self.stack.pop()
    extend(self.stack[-1], [item])


def _append_all(self: _Unpickler) -> None:
    items = self.pop_mark()
    extend(self.stack[-1], items)


def _empty_set(self: _Unpickler) -> None:
    self.append([])


def _frozen_set(self: _Unpickler) -> None:
    self.append(self.pop_mark())


def _byte_array(self: _Unpickler) -> None:
    (count,) = struct.unpack("<Q", self.read(8))
    self.append(self.read(count))


def _refused(self: _Unpickler) -> None:
    raise ForeignPickleError("it uses operations that no checkpoint needs")


OPERATIONS: dict[bytes, Callable[[_Unpickler], None]] = {
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _reduce,
    pickle.NEWOBJ_EX: _new_with_keywords,
    pickle.OBJ: _object,
    pickle.INST: _instance,
    pickle.BUILD: _build,
    pickle.DICT: _dict,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.APPEND: _append,
    pickle.APPENDS: _append_all,
    pickle.EMPTY_SET: _empty_set,
    pickle.ADDITEMS: _append_all,
    pickle.FROZENSET: _frozen_set,
    pickle.BYTEARRAY8: _byte_array,
    **dict.fromkeys(
        (
            pickle.EXT1,
            pickle.EXT2,
            pickle.EXT4,
            pickle.NEXT_BUFFER,
            pickle.READONLY_BUFFER,
        ),
        _refused,
    ),
}
_Unpickler.dispatch |= {operation[0]: replaced for operation, replaced in OPERATIONS.items()}


def unpickle(
    data: memoryview,
    start: int = 0,
    builders: dict[str, Function] | None = None,
    stored: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Read the pickle that begins at ``start``; return its object and where it ends.

    Args:
        builders: more of what may be built, by full name.
        stored: finds what persistent ids stand for.

    Raises:
        ForeignPickleError: it is damaged, or asks for what is not given.
    """
    file = _Bounded(data, start)
    try:
        return _Unpickler(file, BUILDERS | (builders or {}), stored).load(), file.place
    except ForeignPickleError:
        raise
    except Exception as error:  # whatever a damaged pickle leads to
        raise ForeignPickleError(f"it is damaged ({type(error).__name__}: {error})") from None
