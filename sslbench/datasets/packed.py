"""Records in one block of bytes, so that loader processes share them instead of copying them.

A forked process copies each page of memory that it writes to, and reading a Python object writes
its reference count: after an epoch every worker owns a copy of all the annotations. A block has no
counts; a record is made anew whenever it is asked for.
"""

import pickle
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from sslbench.datasets.records import Record


class PackedRecords(Sequence[Record]):
    """Equal to the records it was made of, each a new object every time.

    Args:
        records: are not kept.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        block = bytearray()
        ends = [0]
        for record in records:
            block += pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(block))
        self._block = np.frombuffer(block, dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises for one out of range, and counts from the end
        record: Record = pickle.loads(self._block[self._ends[place] : self._ends[place + 1]].data)
        return record
