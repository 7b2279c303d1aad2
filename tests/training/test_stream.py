"""Batches of the stream: none twice, none lost, and the same for any number of processes and any beginning."""

from itertools import chain, islice

import pytest
import torch

from absorb_pl.errors import RangeError, ShapeError
from absorb_pl.training import ActivationSource, TokenActivationDataModule, WorldActivations
from absorb_pl.training.stream import ActivationStream

CPU = torch.device("cpu")


class Numbered(ActivationSource):
    """Rows that hold their own numbers, 12 per chunk."""

    def __init__(self, chunks: int | None) -> None:
        self.num, self.asked = chunks, []

    @property
    def hook_widths(self):
        return {"x": 1}

    @property
    def num_chunks(self):
        return self.num

    @property
    def identity(self):
        return {"chunks": self.num}

    def chunk(self, number, device):
        self.asked.append(number)
        return {"x": torch.arange(number * 12, number * 12 + 12, device=device, dtype=torch.float32)[:, None]}


def batches_of(source, count, *, first=0, rank=0, processes=1, **settings):
    given = {"batch_size": 24, "chunks_per_buffer": 8, "shards": 4, "held_out": 2, "seed": 1} | settings
    stream = ActivationStream(source, **given, place=lambda: (first, rank, processes, CPU))
    return [batch["x"].flatten().long().tolist() for batch in islice(stream, count)]


def joined(parts):
    return list(chain.from_iterable(parts))


def test_every_row_comes_once_each_time_round_and_held_out_rows_never():
    found = batches_of(Numbered(18), 16)  # 16 chunks of 12 rows are 8 batches
    first, second = joined(found[:8]), joined(found[8:])
    assert sorted(first) == sorted(second) == list(range(24, 18 * 12))
    assert first != second
    assert batches_of(Numbered(18), 16, seed=2) != found


def test_rows_of_a_batch_come_from_all_over_the_buffer():
    [batch] = batches_of(Numbered(None), 1)
    assert len({row // 12 for row in batch}) >= 5  # of 8 chunks


@pytest.mark.parametrize("chunks", [18, None])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_the_batches_of_one(processes, chunks):
    one = batches_of(Numbered(chunks), 9)
    parts = [batches_of(Numbered(chunks), 9, rank=rank, processes=processes) for rank in range(processes)]
    for number, batch in enumerate(one):
        shares = [part[number] for part in parts]
        assert {len(share) for share in shares} == {24 // processes}
        assert sorted(joined(shares)) == sorted(batch)


@pytest.mark.parametrize("first", [1, 3, 4, 11])
def test_a_stream_begins_anywhere(first):
    assert batches_of(Numbered(18), 5, first=first) == batches_of(Numbered(18), 5 + first)[first:]


def test_processes_make_no_chunk_of_others():
    sources = [Numbered(None), Numbered(None)]
    for rank, source in enumerate(sources):
        batches_of(source, 8, rank=rank, processes=2)
    assert not set(sources[0].asked) & set(sources[1].asked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 25}, "`shards` was 4, expected a number that divides batch_size"),
        ({"chunks_per_buffer": 6}, "`shards` was 4, expected a number that divides .*chunks_per_buffer"),
        ({"held_out": 18}, "`val_chunks` was 18, expected fewer than the 18 chunks"),
        ({"batch_size": 400}, "`batch_size` was 400, expected at most the 96 rows of a buffer"),
        ({"processes": 3}, "`shards` was 4, expected a multiple of the 3 processes"),
    ],
)
def test_settings_that_do_not_go_into_one_another_are_refused(settings, message):
    with pytest.raises(ShapeError, match=message):
        batches_of(Numbered(18), 1, **settings)


def test_the_data_module_holds_out_the_first_chunks():
    data = TokenActivationDataModule(Numbered(18), batch_size=24, chunks_per_buffer=8, val_chunks=2)
    held_out = torch.cat([batch["x"] for batch in data.val_dataloader()])
    assert held_out.flatten().tolist() == list(range(24))
    trained = {row for batch in islice(data.train_dataloader(), 8) for row in batch["x"].flatten().tolist()}
    assert trained == set(range(24, 216))
    with pytest.raises(RangeError, match="`val_chunks` was 0"):
        TokenActivationDataModule(WorldActivations(), val_chunks=0)
