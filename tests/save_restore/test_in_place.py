"""Restores that read straight into tensors: the same as the general way, and nothing changes before all is verified."""

import logging
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from call_memory import needs_proc, peak_memory
from hypothesis import given, settings
from memory_storage import MemoryStorage
from storages import Counting, FailingStorage

import torch_tfckpt as tfckpt
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import CheckpointError, DataLossError
from torch_tfckpt.format.tensor_bundle import data_filename, index_filename
from torch_tfckpt.save_restore.builder import BaseSaverBuilder, BulkSaverBuilder
from torch_tfckpt.save_restore.in_place import LARGE_BYTES
from torch_tfckpt.save_restore.restore import restore_saveables
from torch_tfckpt.saveables.save_spec import SaveableObject
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage

MIB = 2**20
LAYOUTS = ("contiguous", "transposed", "strided", "parameter", "inference", "one of two", "the same twice")
DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.complex64, torch.bool)
SIZE = LARGE_BYTES // 4  # floats of a tensor that is large enough


class GeneralWay(BulkSaverBuilder):
    """Reads all values into new memory, because `restore_op` is overridden."""

    def restore_op(self, reader: CheckpointReader, saveable: SaveableObject, preferred_shard: int) -> list[Any]:
        return super().restore_op(reader, saveable, preferred_shard)


class Case(NamedTuple):
    """A tensor of a checkpoint, and its target."""

    shape: tuple[int, int]
    dtype: torch.dtype
    layout: str
    rows: tuple[int, int] | None  # the target is only these rows of the stored tensor
    reshaped: bool  # the target has another shape

    def value(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 2, self.shape, generator=generator).mul(seed + 1).to(self.dtype)

    def targets(self) -> list[torch.Tensor]:
        rows = self.shape[0] if self.rows is None else self.rows[1]
        shape = (rows, self.shape[1])[:: -1 if self.reshaped else 1]
        if self.layout == "transposed":
            return [torch.zeros(shape[::-1], dtype=self.dtype).T]
        if self.layout == "strided":
            return [torch.zeros((shape[0], 2 * shape[1]), dtype=self.dtype)[:, ::2]]
        if self.layout == "one of two":  # the second target shares memory with the first
            both = torch.zeros(shape, dtype=self.dtype)
            return [both, both.view(shape)]
        plain = torch.zeros(shape, dtype=self.dtype)
        if self.layout == "parameter":
            return [torch.nn.Parameter(plain, requires_grad=self.dtype.is_floating_point)]
        if self.layout == "inference":
            with torch.inference_mode():
                return [torch.zeros(shape, dtype=self.dtype)]
        return [plain, plain] if self.layout == "the same twice" else [plain]

    def spec(self) -> str:
        if self.rows is None:
            return ""
        return f"{self.shape[0]} {self.shape[1]} {self.rows[0]},{self.rows[1]}:-"


@st.composite
def cases(draw: Any) -> Case:
    shape = draw(st.integers(1, 5)), draw(st.integers(0, 5))
    rows = None
    if draw(st.booleans()):
        start = draw(st.integers(0, shape[0] - 1))
        rows = (start, draw(st.integers(1, shape[0] - start)))
    layout = draw(st.sampled_from(LAYOUTS))
    return Case(shape, draw(st.sampled_from(DTYPES)), layout, rows, draw(st.booleans()))


def outcome(
    builder: BaseSaverBuilder, path: Path, wanted: Sequence[Case], *, reshape: bool, verify: bool
) -> tuple[list[torch.Tensor], str]:
    """Restore all targets; return their values, and the error without its notes."""
    saveables = [
        VariableSaveable(target, case.spec(), f"t{number}")
        for number, case in enumerate(wanted)
        for target in case.targets()
    ]
    error = ""
    with CheckpointReader(path, verify=verify) as reader:
        try:
            restore_saveables(builder, reader, saveables, reshape=reshape, held_bytes=0)
        except CheckpointError as raised:
            error = f"{type(raised).__name__}: {raised}"
    return [each.tensor.detach() for each in saveables], error


def row_major_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1)).view(torch.uint8)


@settings(max_examples=60)
@given(wanted=st.lists(cases(), min_size=1, max_size=5), data=st.data())
def test_the_same_as_the_general_way(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[Case], data: st.DataObject
) -> None:
    """Values and errors are those of a restore that reads everything into new memory, also if a byte is damaged."""
    path = tmp_path_factory.mktemp("in_place") / "m"
    tfckpt.save_file({f"t{number}": case.value(number) for number, case in enumerate(wanted)}, path)
    file = Path(data_filename(str(path), 0, 1))
    stored = bytearray(file.read_bytes())
    damaged = data.draw(st.none() | st.integers(0, len(stored) - 1)) if stored else None
    if damaged is not None:
        stored[damaged] ^= 0x40
        file.write_bytes(stored)
    reshape, verify = data.draw(st.booleans()), data.draw(st.booleans())
    in_place, error = outcome(BulkSaverBuilder(), path, wanted, reshape=reshape, verify=verify)
    general, wanted_error = outcome(GeneralWay(), path, wanted, reshape=reshape, verify=verify)
    assert error == wanted_error
    for one, other in zip(in_place, general, strict=True):
        assert torch.equal(row_major_bytes(one), row_major_bytes(other))


class Net(torch.nn.Module):
    """Large and small tensors, a buffer, and a tensor with strides."""

    def __init__(self) -> None:
        super().__init__()
        self.large = torch.nn.Linear(512, 512)
        self.norm = torch.nn.BatchNorm1d(7)
        self.turned = torch.nn.Parameter(torch.zeros(300, 400).T)


def test_saver_reports_and_logs_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The report and the log lines of Saver.restore do not depend on the way; neither does autograd."""
    torch.manual_seed(0)
    source = Net()
    tfckpt.Saver({"net": source, "step": torch.tensor(3)}).save(tmp_path / "m")
    found = []
    for builder in (BulkSaverBuilder(), GeneralWay()):
        net, step = Net(), torch.tensor(0)
        versions = [each._version for each in net.parameters()]
        saver = tfckpt.Saver({"net": net, "step": step}, builder=builder)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            report = saver.restore(tmp_path / "m")
        for name, value in net.state_dict().items():
            assert torch.equal(value, source.state_dict()[name])
        assert step == 3
        assert all(now._version > before for now, before in zip(net.parameters(), versions, strict=True))
        found.append((report, caplog.messages))
    assert str(found[0][0]) == str(found[1][0])
    assert found[0][0].sources == found[1][0].sources
    assert found[0][1] == found[1][1]


class Large:
    """A checkpoint of three tensors that are read in place, and tensors to restore it into."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "m"
        self.data = Path(data_filename(str(self.path), 0, 1))
        self.values = {name: torch.full((SIZE,), float(number)) for number, name in enumerate("abc", 1)}
        tfckpt.save_file(self.values, self.path)
        self.targets = {name: torch.zeros(SIZE) for name in self.values}

    def restore(self, storage: Storage, *, verify: bool = True) -> None:
        tfckpt.Saver(self.targets, storage=storage).restore(self.path, verify=verify)

    def changed(self) -> set[str]:
        return {name for name, target in self.targets.items() if target.any()}

    def reads(self, storage: Counting) -> list[int]:
        """Numbers of the operations that read values, in order."""
        return [number for number, what in enumerate(storage.log) if what == f"read {self.data.name}"]


@pytest.fixture
def large(tmp_path: Path) -> Large:
    return Large(tmp_path)


def named_in_note(error: BaseException) -> set[str]:
    """Return the names of tensors that the notes of an error list as changed."""
    notes = [note for note in getattr(error, "__notes__", ()) if "straight into their tensors" in note]
    return set(re.findall('"(.*?)"', "".join(notes)))


def test_every_byte_is_read_twice_or_once(large: Large) -> None:
    """Local files are read to verify them, then into the tensors; without verifying, and remote files, only once."""
    twice, once = Counting(LOCAL), Counting(LOCAL)
    large.restore(twice)
    large.restore(once, verify=False)
    files = {each: Path(each).read_bytes() for each in (str(large.data), index_filename(str(large.path)))}
    remote = Counting(MemoryStorage(files))
    large.restore(remote)
    counts = [len(large.reads(storage)) for storage in (twice, once, remote)]
    assert counts[0] > counts[1] >= 1
    assert counts[2] <= counts[0] // 2 + 1
    assert all(torch.equal(large.targets[name], value) for name, value in large.values.items())


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_damage_leaves_all_targets_untouched(large: Large, place: float) -> None:
    """A flipped byte in any tensor is found before the first target changes."""
    stored = bytearray(large.data.read_bytes())
    stored[int(len(stored) * place)] ^= 1
    large.data.write_bytes(stored)
    with pytest.raises(DataLossError, match="Checksum does not match") as raised:
        large.restore(LOCAL)
    assert not large.changed()
    assert not named_in_note(raised.value)


def test_a_read_error_tells_what_changed(large: Large) -> None:
    """Whichever read fails: before the second pass nothing changes, and from then on the note lists what changed."""
    counting = Counting(LOCAL)
    large.restore(counting)
    reads = large.reads(counting)
    seen = set()
    for number in reads:
        for target in large.targets.values():
            target.zero_()
        storage = FailingStorage(LOCAL, number, forever=True)
        with pytest.raises(OSError, match="No space") as raised:
            large.restore(storage)
        assert large.changed() <= named_in_note(raised.value)
        seen.add(bool(named_in_note(raised.value)))
    assert seen == {False, True}


class Meddling(Counting):
    """Calls `meddle` before the operation with this number."""

    def __init__(self, number: int, meddle: Any) -> None:
        super().__init__(LOCAL)
        self._number, self._meddle = number, meddle

    def before(self, number: int, what: str) -> None:
        if number == self._number:
            self._meddle()


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_file_that_changes_between_the_passes(large: Large, how: str) -> None:
    """A file that is truncated or overwritten after it was verified is an error that lists the changed tensors."""
    counting = Counting(LOCAL)
    large.restore(counting)
    reads = large.reads(counting)
    for target in large.targets.values():
        target.zero_()

    def meddle() -> None:
        with large.data.open("r+b") as file:
            if how == "truncated":
                file.truncate(SIZE * 4 + 1000)
            else:
                file.seek(SIZE * 4 + 1000)
                file.write(b"\xff" * 8)

    with pytest.raises(DataLossError, match="truncated" if how == "truncated" else "Checksum does not match") as raised:
        large.restore(Meddling(reads[len(reads) // 2], meddle))
    assert large.changed() <= named_in_note(raised.value) <= {"a", "b", "c"}
    assert named_in_note(raised.value)


def test_modules_that_load_a_state_dict_are_undone(large: Large) -> None:
    """If the second pass fails, a module whose load_state_dict was called is as it was before."""

    class Hooked(torch.nn.Linear):
        def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
            return super().load_state_dict(*arguments, **keywords)

    names = {"net": Hooked(2, 2), **{name: torch.ones(SIZE) for name in "xy"}}
    tfckpt.Saver(names).save(large.path, write_meta_graph=False)
    counting = Counting(LOCAL)
    tfckpt.Saver(names, storage=counting).restore(large.path)
    reads = large.reads(counting)
    net, targets = Hooked(2, 2), {name: torch.zeros(SIZE) for name in "xy"}
    before = net.weight.detach().clone()
    storage = FailingStorage(LOCAL, reads[-1])
    with pytest.raises(OSError, match="No space") as raised:
        tfckpt.Saver({"net": net, **targets}, storage=storage).restore(large.path)
    assert torch.equal(net.weight, before)
    assert {name for name, target in targets.items() if target.any()} <= named_in_note(raised.value)


def test_parts_of_one_tensor(tmp_path: Path) -> None:
    """The slices of a partitioned variable are read in place, from a tensor that was stored in other slices."""
    whole = torch.arange(8.0 * SIZE).view(8, SIZE)
    tfckpt.Saver([_partitioned(whole, (0, 3, 8))]).save(tmp_path / "m")
    parts = _partitioned(torch.zeros(8, SIZE), (0, 2, 5, 8))
    counting = Counting(LOCAL)
    tfckpt.Saver([parts], storage=counting).restore(tmp_path / "m")
    assert torch.equal(torch.cat([part.tensor for part in parts]), whole)


def _partitioned(whole: torch.Tensor, bounds: Sequence[int]) -> tfckpt.PartitionedVariable:
    shape = list(whole.shape)
    parts = [
        tfckpt.Variable(
            whole[first:end], f"part_{first}", tfckpt.SaveSliceInfo("w", shape, [first, 0], [end - first, shape[1]])
        )
        for first, end in pairwise(bounds)
    ]
    return tfckpt.PartitionedVariable("w", parts)


def test_objects_are_restored_in_place(tmp_path: Path) -> None:
    """Checkpoint.restore reads into the tensors of its objects; each byte is read twice."""
    values = [torch.full((SIZE,), float(number)) for number in range(3)]
    path = tfckpt.Checkpoint(values=[value.clone() for value in values]).write(tmp_path / "m")
    targets = [torch.full((SIZE,), 9.0) for _ in values]
    pointers = [target.data_ptr() for target in targets]
    tfckpt.Checkpoint(values=targets).read(path).assert_consumed()
    assert [target.data_ptr() for target in targets] == pointers
    assert all(torch.equal(target, value) for target, value in zip(targets, values, strict=True))


MEMORY_IMPORTS = """
import torch
import torch_tfckpt as tfckpt
count, path, verify = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "verify"
targets = {f"l{number}": torch.ones(2**20) for number in range(count)}
saver = tfckpt.Saver(targets)
"""


@needs_proc
@pytest.mark.parametrize("verify", ["verify", "not"])
def test_memory_is_constant(tmp_path: Path, verify: str) -> None:
    """A restore of 256 MiB takes less than 64 MiB."""
    tfckpt.save_file({f"l{number}": torch.zeros(2**20) for number in range(64)}, tmp_path / "m")
    taken = peak_memory(
        MEMORY_IMPORTS, "saver.restore(path, verify=verify)", "64", str(tmp_path / "m"), verify, timeout=300
    )
    assert taken < 64 * MIB
    assert os.path.getsize(data_filename(str(tmp_path / "m"), 0, 1)) == 256 * MIB
