"""Files of one save that several processes create: their indexes, their names, and their publication."""

from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.publish import BundlePublication
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_bundle import (
    HEADER_KEY,
    BundleEntry,
    BundleHeader,
    SplitEntry,
    data_filename,
    encode_index,
)
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import parse_temporary_name, shared_save_number, temporary_name
from torch_tfckpt.transfer.pipeline import Pipeline
from torch_tfckpt.transfer.writes import write_tensors

SHAPE = (4, 3)


def part_of(rank: int) -> BundlePlan:
    """A plan with two rows of a partitioned tensor, and one whole tensor."""
    plan = BundlePlan()
    part = TensorSlice.parse(f"{2 * rank},2:-")
    plan.add("w", torch.full((2, 3), float(rank)), shard=0, part=(SHAPE, part))
    plan.add(f"b{rank}", torch.tensor([rank]), shard=0)
    return plan


def write(plan: BundlePlan, path: str) -> None:
    file, pipeline = LOCAL.create(path), Pipeline()
    plan.enter(write_tensors(pipeline, plan.waiting, [file]))
    plan.close()
    pipeline.close()
    file.sync()
    file.close()


def entries_of(index: bytes) -> dict[bytes, bytes]:
    return dict(Table(lambda offset, size: index[offset : offset + size], len(index)).items())


@pytest.mark.parametrize("first", [0, 1, 127, 128, 2**31 - 2])
def test_the_index_of_a_part_has_the_numbers_of_the_whole_checkpoint(first: int, tmp_path: Path) -> None:
    """Its entries differ from those of the plan's own index only in their shard."""
    plan = part_of(0)
    write(plan, str(tmp_path / "data"))
    own, part = entries_of(plan.encode_index(1)), entries_of(plan.part_index(first))
    assert BundleHeader.decode(part.pop(HEADER_KEY)).num_shards == first + 1
    own.pop(HEADER_KEY)
    assert list(part) == list(own)
    for key, value in part.items():
        assert BundleEntry.decode(value) == BundleEntry.decode(own[key])._replace(shard=first)


@pytest.mark.parametrize("shard", [0, 1, 300])
@pytest.mark.parametrize("dtype", [0, 1, 127])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2**40), (1,) * 40])
def test_a_split_entry_is_joined_again(shard: int, dtype: int, shape: tuple[int, ...]) -> None:
    """The entry is the same, and so is every other field after its shard was replaced."""
    slices = (TensorSlice.full(len(shape)),)
    for entry in (
        BundleEntry(dtype, shape, shard, 5, 6, 7),
        BundleEntry(dtype, shape, shard),
        BundleEntry(dtype, shape, shard, slices=slices),
    ):
        split = SplitEntry.decode(entry.encode())
        assert split.encode() == entry.encode()
        assert (split.shard, BundleEntry.decode(split.described)) == (shard, BundleEntry(dtype, shape))
        assert split._replace(shard=9).encode() == entry._replace(shard=9).encode()


def test_an_entry_with_fields_in_another_order_is_split_as_well() -> None:
    """It is written again in the usual order."""
    usual = BundleEntry(1, (2,), 3, 4, 8, 5)
    described = SplitEntry.decode(usual.encode()).described
    unusual = usual.encode().removeprefix(described) + described
    assert SplitEntry.decode(unusual).encode() == usual.encode()


@pytest.mark.parametrize("damaged", [b"\xff", b"\x08", b"\x08\x01\x12\x09", b"\x08\x01\x12\x00\x18\x80"])
def test_a_damaged_entry_is_not_split(damaged: bytes) -> None:
    """It is a DataLossError."""
    with pytest.raises(DataLossError):
        SplitEntry.decode(damaged)


@pytest.mark.parametrize("replacing", [False, True])
def test_files_of_several_processes_are_published_together(replacing: bool, tmp_path: Path) -> None:
    """The data files are named at the end; a checkpoint that they replace is whole until then."""
    prefix = str(tmp_path / "m")
    if replacing:
        tfckpt.save_file({"w": torch.zeros(SHAPE)}, prefix)
    number = shared_save_number(LOCAL.lock_domain(str(tmp_path)), "m")
    publication = BundlePublication(LOCAL, prefix, save=number)
    assert publication.save == number
    plans = [part_of(0), part_of(1)]
    paths = [temporary_name(data_filename(prefix, rank, 2), number) for rank in range(2)]
    for plan, path in zip(plans, paths, strict=True):
        write(plan, path)
    if replacing:
        assert not tfckpt.load_file(prefix)["w"].any()
    whole = BundlePlan(2)
    for rank in range(2):
        part = TensorSlice.parse(f"{2 * rank},2:-")
        whole.add("w", torch.full((2, 3), float(rank)), shard=rank, part=(SHAPE, part))
    for rank in range(2):
        whole.add(f"b{rank}", torch.tensor([rank]), shard=rank)
    joined = {**entries_of(plans[0].part_index(0)), **entries_of(plans[1].part_index(1))}
    slices = tuple(TensorSlice.parse(f"{2 * rank},2:-") for rank in range(2))
    joined[b"w"] = BundleEntry(1, SHAPE, slices=slices).encode()
    del joined[HEADER_KEY]
    publication.publish(lambda count: encode_index(BundleHeader(count), joined), data=paths)
    assert {path.name for path in tmp_path.iterdir()} == {"m.index", "m.data-00000-of-00002", "m.data-00001-of-00002"}
    loaded = tfckpt.load_file(prefix)
    assert loaded["w"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert [loaded["b0"].tolist(), loaded["b1"].tolist()] == [[0], [1]]


def test_a_missing_file_publishes_nothing(tmp_path: Path) -> None:
    """The earlier checkpoint stays, and the files of the save are removed."""
    prefix = tfckpt.save_file({"w": torch.ones(2)}, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    publication = BundlePublication(LOCAL, prefix)
    paths = [temporary_name(data_filename(prefix, rank, 2), publication.save) for rank in range(2)]
    write(part_of(0), paths[0])
    with pytest.raises(FileNotFoundError):
        publication.publish(lambda count: b"", data=paths)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("data", [[], ["elsewhere/m.data"]])
def test_files_that_cannot_be_published(data: list[str], tmp_path: Path) -> None:
    """No file at all, or one in another directory: refused, and nothing is left."""
    publication = BundlePublication(LOCAL, str(tmp_path / "m"))
    with pytest.raises(InvalidArgumentError, match=r"save of .*/m: "):
        publication.publish(lambda count: b"", data=data)
    publication.abandon()
    assert not list(tmp_path.iterdir())


def test_all_files_of_a_save_share_its_number(tmp_path: Path) -> None:
    """While the marker is in use, closed files of other processes stay; afterwards they are leftovers."""
    prefix = str(tmp_path / "m")
    number = shared_save_number(LOCAL.lock_domain(str(tmp_path)), "m")
    publication = BundlePublication(LOCAL, prefix, save=number)
    path = temporary_name(data_filename(prefix, 1, 2), number)
    write(part_of(1), path)
    assert remove_leftovers(LOCAL, str(tmp_path)) == []
    parsed = parse_temporary_name(path)
    assert parsed is not None and parsed.save == number
    publication.abandon()
    assert remove_leftovers(LOCAL, str(tmp_path)) == [path]
    assert not list(tmp_path.iterdir())


def test_shared_numbers() -> None:
    """They depend on the token and on the lock domain, which can be found in them."""
    numbers = {shared_save_number(domain, token) for domain in (0, 2**32 - 1) for token in ("a", "b", "\udcff")}
    assert len(numbers) == 6 and {number >> 32 for number in numbers} == {0, 2**32 - 1}
