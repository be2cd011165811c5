"""Checkpoint under faults: its storage fails at any operation, training continues during a save, restores do not fit.

The previous checkpoint stays the newest, and a failed restore changes nothing.
"""

import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import pytest
import torch
from claims import assert_helps
from storages import CrashingStorage, FailingStorage, Killed, SwitchedStorage
from torch import nn
from torch.optim.lr_scheduler import StepLR

import torch_tfckpt as tfckpt
from torch_tfckpt import StagingOptions
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.options import CheckpointOptions
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.values import WritableValue

ONE_THREAD: Final = StagingOptions(threads=1)
MIB: Final = 1 << 20


class Way(NamedTuple):
    """How a checkpoint is saved."""

    beside_training: bool = False
    sharded: bool = False


WAYS: Final = {"plain": Way(), "sharded, async": Way(beside_training=True, sharded=True)}


class Program:
    """One object of each kind, on two (tagged) devices; all values derive from one number."""

    def __init__(self, *, kind: type[torch.optim.Optimizer] = torch.optim.Adam, width: int = 3) -> None:
        self.model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.optimizer = kind(self.model.parameters(), lr=1.0)  # type: ignore[call-arg]
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        self.scheduler = StepLR(self.optimizer, 1)
        self.table: dict[str, Any] = {"ema": torch.zeros(4), "best": 0.0, "names": ["a"]}
        self.plain: list[object] = [0]
        self.other = tfckpt.Variable(torch.zeros(5), "other", device="/cpu:1")
        self.storage = SwitchedStorage()
        self.checkpoint: Any = Checkpoint(
            storage=cast(Storage, self.storage),
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            table=self.table,
            plain=self.plain,
            other=self.other,
            epoch=0,
        )

    def fill(self, number: int) -> None:
        """Change everything, in place if possible."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        with torch.no_grad():
            for tensor in [*self.model.state_dict().values(), *states, self.table["ema"]]:
                tensor.fill_(number)
            self.other.tensor.fill_(number + 0.5)
        self.optimizer.param_groups[0]["lr"] = float(number)
        self.scheduler.last_epoch = number
        self.table["best"] = float(number)
        self.table["names"][:] = ["a"] * (number % 5)
        self.plain[:] = [number]
        self.checkpoint.epoch = number

    def values(self) -> object:
        """Return all values in a form that compares bit for bit."""
        counter = self.checkpoint._save_counter
        parts = [self.model.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict(), self.table]
        return _bits([*parts, self.plain, self.other.tensor, self.checkpoint.epoch, counter])

    def save(self, prefix: Path, way: Way) -> str:
        options = CheckpointOptions(sharded=way.sharded, staging=ONE_THREAD)
        if not way.beside_training:
            path: str = self.checkpoint.save(prefix, options)
            return path
        handle = self.checkpoint.save_async(prefix, options)
        self.fill(10_000)
        result: str = handle.result()
        return result


def _bits(value: object) -> object:
    if isinstance(value, torch.Tensor):
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
        return str(value.dtype), tuple(value.shape), content
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, list | tuple) else value


def number_in(path: str) -> int:
    """Return the number that all values of a checkpoint were saved for."""
    loaded, expected = _loaded_and_expected()
    loaded.fill(-2)
    loaded.checkpoint.restore(path).assert_consumed()
    number: int = loaded.checkpoint.epoch
    expected.fill(number)
    expected.checkpoint.save_counter.fill_(int(path.rpartition("-")[2]))
    assert loaded.values() == expected.values()
    return number


@functools.cache
def _loaded_and_expected() -> tuple[Program, Program]:
    return Program(), Program()


def newest(folder: Path) -> int:
    """Return the number in the checkpoint that the state file names."""
    path = tfckpt.latest_checkpoint(folder)
    assert path is not None
    return number_in(path)


BEFORE, NEW, NEXT = 7, 8, 9


def cases(tmp_path: Path, way: Way) -> Iterator[tuple[int, Path, Program]]:
    """Yield, for each number from 0 on, a program that has saved BEFORE and is about to save NEW."""
    (tmp_path / "run").mkdir()
    program = Program()
    program.fill(BEFORE)
    path = program.save(tmp_path / "run" / "m", way)
    for number in itertools.count():
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", folder)
        program.checkpoint.restore(path).assert_consumed()
        program.fill(NEW)
        yield number, folder, program
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: only the number of operations matters here."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("what", WAYS)
def test_a_failure_at_any_operation(what: str, late: bool, tmp_path: Path) -> None:
    """Whichever operation of a save fails, before or after it took effect, the state is consistent.

    The state file names a complete checkpoint, the old or the new one; the message is true; the next save succeeds and
    cleans up.
    """
    way = WAYS[what]
    for number, folder, program in cases(tmp_path, way):
        storage = FailingStorage(LOCAL, number, late=late)
        with program.storage.using(storage):
            try:
                program.save(folder / "m", way)
            except Exception as error:
                assert_helps(error, str(folder))
                there = newest(folder)
                assert there in (BEFORE, NEW), f"after {storage.failed}"
                if "othing was published" in str(error):
                    assert there == BEFORE, f"{storage.failed}: {error}"
                    assert not (folder / "m-2.index").exists()
                if "is in place" in str(error):
                    assert number_in(str(folder / "m-2")) == NEW
            else:
                assert newest(folder) == NEW, f"the save returned, although {storage.failed} failed"
            storage.heal()
            program.fill(NEXT)
            path = program.save(folder / "m", way)
        assert newest(folder) == NEXT
        shards = 2 if way.sharded else 1
        numbers = [n for n in (1, 2, 3) if (folder / f"m-{n}.index").exists()]
        assert path == str(folder / "m-3") and numbers[-1] == 3
        assert len(list(folder.iterdir())) == 1 + len(numbers) * (1 + shards), sorted(folder.iterdir())
        if not storage.failed:
            break
    assert number > 15


def test_a_kill_at_any_operation(tmp_path: Path) -> None:
    """Without cleanup, a new process finds a complete checkpoint, the old or the new one, and can save."""
    way = WAYS["sharded, async"]
    for number, folder, program in cases(tmp_path, way):
        storage = CrashingStorage(LOCAL, number)
        with program.storage.using(storage):
            try:
                program.save(folder / "m", way)
            except Killed:
                assert newest(folder) in (BEFORE, NEW), f"killed at {storage.crashed}"
            else:
                assert newest(folder) == NEW
                break
        storage.end_process()
        restarted = Program()
        restarted.checkpoint.restore(tfckpt.latest_checkpoint(folder)).assert_consumed()
        restarted.fill(NEXT)
        restarted.save(folder / "m", way)
        assert newest(folder) == NEXT
        assert not [path for path in folder.iterdir() if "temp" in path.name]
    assert number > 15


@pytest.mark.thinned(3)
@pytest.mark.parametrize("async_mib", [64, 2], ids=["all at once", "in waves"])
@pytest.mark.parametrize("call", ["save_async", "enable_async"])
def test_training_continues_during_a_save(call: str, async_mib: int, tmp_path: Path) -> None:
    """20 rounds: everything changes as soon as the call returns, whether or not it is already written.

    Tensors, strings, optimizer state and graph: the values from before the call are saved.
    """

    def with_more() -> tuple[Program, Callable[[int], None]]:
        program, more = Program(), nn.ParameterList([torch.zeros(MIB // 4) for _ in range(3)])
        program.checkpoint.more = more

        def fill(number: int) -> None:
            program.fill(number)
            with torch.no_grad():
                for parameter in more:
                    parameter.fill_(number)

        return program, fill

    program, fill = with_more()
    loaded, _ = with_more()
    expected, fill_expected = with_more()
    # 3 MiB fit at once, or are copied through buffers of 2 MiB.
    staging = StagingOptions(buffer_bytes=MIB, async_bytes=async_mib * MIB)
    options = CheckpointOptions(staging=staging, enable_async=call == "enable_async")
    for number in range(1, 21):
        fill(number)
        if call == "save_async":
            handle = program.checkpoint.save_async(tmp_path / "m", options)
            fill(-1)
            assert handle.staged.is_set()
            path = handle.result()
        else:
            path = program.checkpoint.save(tmp_path / "m", options)
            fill(-1)
            program.checkpoint.sync()
        loaded.checkpoint.restore(path).assert_consumed()
        fill_expected(number)
        expected.checkpoint.save_counter.fill_(number)
        assert loaded.values() == expected.values()
        assert all((parameter == number).all() for parameter in loaded.checkpoint.more)
        for file in tmp_path.glob(f"m-{number}.*"):
            file.unlink()


class Spoiled(NamedTuple):
    """An invalid value, and how it is produced."""

    key: str
    spoil: Callable[[str], None]


def damaged(path: str) -> None:
    """Flip a byte of the last value before the graph."""
    with tfckpt.load_checkpoint(path) as reader:
        entries = [(reader.get_tensor(key), key) for key in reader.keys() if key != OBJECT_GRAPH_KEY]
    last = torch.as_tensor(next(value for value, key in entries if key.startswith("other/")))
    file = Path(f"{path}.data-00000-of-00001")
    content = bytearray(file.read_bytes())
    at = content.rindex(last.numpy().tobytes())
    content[at] ^= 1
    file.write_bytes(content)


def replaced(key: str, value: WritableValue | None) -> Spoiled:
    """Replace the value of the key, or remove it."""

    def spoil(path: str) -> None:
        values: dict[str, WritableValue] = {**tfckpt.load_file(path)}
        del values[key]
        tfckpt.save_file({**values, key: value} if value is not None else values, path)

    return Spoiled(key, spoil)


OTHER: Final = "other/.ATTRIBUTES/VARIABLE_VALUE"
PLAIN: Final = "plain/.ATTRIBUTES/py_state"
SPOILED: Final = {
    "a damaged tensor": Spoiled(OTHER, damaged),
    "another shape": replaced(OTHER, torch.zeros(6)),
    "another dtype": replaced(OTHER, torch.zeros(5, dtype=torch.int32)),
    "a missing tensor": replaced(OTHER, None),
    "a missing text": replaced(PLAIN, None),
    "an invalid JSON string": replaced(PLAIN, b"{"),
    "a JSON string of another kind": replaced(PLAIN, b'{"a": 1}'),
    "an optimizer's JSON string": replaced("optimizer/.ATTRIBUTES/py_state", b'{"a": 1}'),
}


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "never saved"])
@pytest.mark.parametrize("how", SPOILED)
def test_a_failed_restore_changes_nothing(how: str, counted: bool, tmp_path: Path) -> None:
    """Whatever is wrong with one value, everything keeps its previous value and identity, bit for bit.

    Tensors, optimizer and scheduler state, plain values and the counter; the message contains the path and the key.
    """
    source = Program()
    source.fill(3)
    path = source.checkpoint.save(tmp_path / "m")
    SPOILED[how].spoil(path)
    target = Program()
    target.fill(4)
    if counted:
        target.checkpoint.save_counter.fill_(40)
    before, parts = target.values(), [target.table["ema"], target.table["names"], *target.model.parameters()]
    with pytest.raises(tfckpt.CheckpointError) as caught:
        target.checkpoint.restore(path)
    assert path in str(caught.value)
    assert SPOILED[how].key in str(caught.value)
    assert target.values() == before
    after = [target.table["ema"], target.table["names"], *target.model.parameters()]
    assert all(one is other for one, other in zip(parts, after, strict=True))
    source.checkpoint.save(tmp_path / "n")
    target.checkpoint.restore(tmp_path / "n-2").assert_consumed()
    assert target.checkpoint.epoch == 3


@pytest.mark.parametrize(
    "program", [lambda: Program(kind=torch.optim.Rprop), lambda: Program(width=4)], ids=["optimizer", "model"]
)
def test_a_failed_restore_into_another_program_changes_nothing(program: Callable[[], Program], tmp_path: Path) -> None:
    """A different optimizer for the same model, or a model with other shapes."""
    source = Program()
    path = source.checkpoint.save(tmp_path / "m")
    target = program()
    target.fill(4)
    before = target.values()
    with pytest.raises(tfckpt.InvalidArgumentError) as caught:
        target.checkpoint.restore(path)
    assert target.values() == before
    assert path in str(caught.value)
