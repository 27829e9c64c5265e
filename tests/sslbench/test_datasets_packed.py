"""Packed records: equal to the plain ones, and of one block instead of millions of objects."""

import gc
from pathlib import Path

import devkits
import pytest

from sslbench.datasets import DataRoots, Record, read
from sslbench.datasets.packed import PackedRecords


@pytest.fixture
def records(tmp_path: Path) -> tuple[Record, ...]:
    devkits.write_coco(tmp_path)
    return read("coco2017/val", DataRoots(tmp_path)).records


def test_packed_records_equal_the_plain_ones(records: tuple[Record, ...]):
    packed = PackedRecords(records)
    assert tuple(packed) == records and len(packed) == 2
    assert packed[-1] == records[-1] and packed[0:2] == list(records)
    with pytest.raises(IndexError):
        packed[2]


def test_packing_keeps_no_object_for_a_record(records: tuple[Record, ...]):
    packed = PackedRecords(records * 500)
    held = [item for item in gc.get_objects() if type(item) is Record]
    assert len(packed) == 1000 and len(held) <= len(records)


def test_no_records_are_packed_too():
    assert list(PackedRecords(())) == []
