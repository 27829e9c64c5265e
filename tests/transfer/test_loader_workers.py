"""Loader processes read the same samples as this one, from one shared block of records."""

from pathlib import Path

from sslbench.datasets import Record
from sslbench.datasets.packed import PackedRecords
from transfer.loader import TrainingBatches


class Names:
    """Maps a record to what it is and what was drawn for it."""

    @staticmethod
    def train(record, draw):
        return record.image_id, draw.iteration, draw.slot

    @staticmethod
    def test(record):
        return record.image_id


def test_workers_read_what_this_process_reads_from_a_packed_block():
    records = [Record(number, Path(f"{number}.jpg"), 6, 8, ()) for number in range(7)]
    here = TrainingBatches(records, Names(), 2, 3, grouped=True)
    there = TrainingBatches(records, Names(), 2, 3, grouped=True, num_workers=2)
    assert here.samples.records is records
    assert isinstance(there.samples.records, PackedRecords)
    assert list(there(0, 6)) == list(here(0, 6))
