"""Many small tensors are checked and assigned in bulk: the same values, errors and versions as one by one."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import torch_tfckpt as tfckpt
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.save_restore.builder import BulkSaverBuilder
from torch_tfckpt.save_restore.bulk_assign import OrdinarySaveables
from torch_tfckpt.save_restore.restore import restore_saveables
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable

STORED = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(7),
    "c": torch.tensor([True, False]),
    "d": torch.arange(4, dtype=torch.bfloat16),
    "e": torch.zeros(0, 3),
}
KINDS = ("same", "parameter", "transposed", "inference", "view", "shape", "dtype", "name", "meta", "expanded")


class OneByOne(VariableSaveable):
    """Checked and assigned alone, because it is of another class."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tfckpt.save_file(STORED, tmp_path_factory.mktemp("stored") / "m")


def target(key: str, kind: str) -> torch.Tensor:
    """A tensor to restore `key` into."""
    value = torch.full_like(STORED[key], 1)
    match kind:
        case "parameter":
            return torch.nn.Parameter(value, requires_grad=value.is_floating_point())
        case "transposed":
            return torch.ones(value.shape[::-1], dtype=value.dtype).t() if value.ndim == 2 else value
        case "inference":
            with torch.inference_mode():
                return value.clone()
        case "view":
            return torch.ones((2, *value.shape), dtype=value.dtype)[1]
        case "shape":
            return torch.ones((*value.shape, 2), dtype=value.dtype)
        case "dtype":
            return value.to(torch.float64)
        case "meta":
            return value.to("meta")
        case "expanded":
            return torch.ones((), dtype=value.dtype).expand(value.shape)
    return value


def restored(path: str, chosen: list[tuple[str, str]], kind: type[VariableSaveable]) -> tuple[str, list[torch.Tensor]]:
    """The error, without notes, and the targets."""
    targets = [target(key, how) for key, how in chosen]
    names = ["missing" if how == "name" else key for key, how in chosen]
    error = ""
    try:
        saveables = [kind(tensor, "", name) for tensor, name in zip(targets, names, strict=True)]
        with CheckpointReader(path) as reader:
            restore_saveables(BulkSaverBuilder(), reader, saveables)
    except CheckpointError as raised:
        error = f"{type(raised).__name__}: {raised}"
    return error, targets


@given(st.lists(st.tuples(st.sampled_from(sorted(STORED)), st.sampled_from(KINDS)), max_size=6))
@settings(max_examples=300)
def test_the_same_as_one_by_one(path: str, chosen: list[tuple[str, str]]) -> None:
    """Values, errors, and the versions by which autograd notices changes."""
    error, targets = restored(path, chosen, VariableSaveable)
    wanted_error, wanted = restored(path, chosen, OneByOne)
    assert error == wanted_error
    for tensor, other in zip(targets, wanted, strict=True):
        if not tensor.is_meta:
            assert torch.equal(tensor, other)
        if not tensor.is_inference():
            assert tensor._version == other._version


def test_ordinary_tensors_are_assigned_in_bulk(path: str) -> None:
    """And others are not: another class or function, a slice, a shape or a dtype that does not fit."""
    plain = VariableSaveable(torch.zeros(2, 3), "", "a")
    hooked = VariableSaveable(torch.zeros(2, 3), "", "a")
    hooked.restore = lambda *_: None  # type: ignore[method-assign]
    others = [
        OneByOne(torch.zeros(2, 3), "", "a"),
        hooked,
        VariableSaveable(torch.zeros(1, 3), "2 3 1,1:-", "a"),
        VariableSaveable(torch.zeros(3, 2), "", "a"),
        VariableSaveable(torch.zeros(2, 3, dtype=torch.float64), "", "a"),
        VariableSaveable(torch.zeros(2, 3), "", "missing"),
    ]
    with CheckpointReader(path) as reader:
        ordinary = OrdinarySaveables(reader, [plain, *others])
        assert plain in ordinary
        assert not [each for each in others if each in ordinary]
        assert ordinary.add(plain, [STORED["a"]])
        assert not ordinary.add(plain, [STORED["a"].t()]), "its tensor has changed since"
        assert not any(ordinary.add(each, [STORED["a"]]) for each in others)
        assert torch.equal(plain.tensor, torch.zeros(2, 3))
        assert ordinary.assign() == ["a"]
        assert ordinary.assign() == []
    assert torch.equal(plain.tensor, STORED["a"])


def test_tensors_of_the_same_memory_are_assigned_in_order(path: str, tmp_path: Path) -> None:
    """The last value counts, whichever way each of them is assigned."""
    stored = tfckpt.save_file(
        {name: torch.full((2,), value) for name, value in zip("abc", (1.0, 2.0, 3.0), strict=True)}, tmp_path / "m"
    )
    for middle in (VariableSaveable, OneByOne):
        memory = torch.zeros(2)
        kinds = (VariableSaveable, middle, VariableSaveable)
        with CheckpointReader(stored) as reader:
            saveables = [kind(memory.view(2), "", name) for kind, name in zip(kinds, "abc", strict=True)]
            restore_saveables(BulkSaverBuilder(), reader, saveables)
            assert memory.tolist() == [3.0, 3.0]
            restore_saveables(BulkSaverBuilder(), reader, [*saveables[:2]])
        assert memory.tolist() == [2.0, 2.0]
