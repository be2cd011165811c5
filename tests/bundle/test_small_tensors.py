"""Tensors that are planned in bulk are stored like tensors planned one by one: same bytes, same errors."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.save import BundleSave
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.storage.local import LocalStorage
from torch_tfckpt.transfer.staging import Staging
from torch_tfckpt.values import WritableValue

_MAKERS: dict[str, Callable[[], WritableValue]] = {
    "vector": lambda: torch.arange(10.0),
    "matrix": lambda: torch.arange(12, dtype=torch.int16).view(3, 4),
    "scalar": lambda: torch.tensor(7),
    "empty": lambda: torch.empty(0, 3),
    "parameter": lambda: torch.nn.Parameter(torch.ones(2, 2)),
    "transposed": lambda: torch.arange(12.0).view(3, 4).t(),
    "every second": lambda: torch.arange(20.0)[::2],
    "expanded": lambda: torch.ones(1).expand(5),
    "bool": lambda: torch.tensor([True, False, True]),
    "bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "complex": lambda: torch.tensor([1 + 2j]),
    "conjugated": lambda: torch.tensor([1 + 2j, 3j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j, 3j]).conj().imag,
    "large": lambda: torch.arange(20_000.0),
    "half a run": lambda: torch.arange(16_384.0),
    "array": lambda: np.arange(4),
    "strings": lambda: ["a", "bc"],  # type: ignore[dict-item,return-value]
}
_BAD: dict[str, Callable[[], WritableValue]] = {
    "meta": lambda: torch.empty(2, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "object": lambda: {},  # type: ignore[dict-item,return-value]
    "unknown dtype": lambda: torch.ones(2).to(torch.float8_e8m0fnu),
}
_NAMES = st.sampled_from(["a", "b", "b/c", "\udce4", "ü", "name" * 40])
_ITEMS = st.lists(st.tuples(st.sampled_from([*_MAKERS] * 3 + [*_BAD]), st.integers(1, 40)), min_size=1, max_size=12)


def _values(kinds: Sequence[tuple[str, int]]) -> list[WritableValue]:
    return [{**_MAKERS, **_BAD}[kind]() for kind, count in kinds for _ in range(count)]


def _saved(folder: Path, plan: BundlePlan, *, snapshot: bool) -> tuple[bytes, ...]:
    folder.mkdir()
    prefix = str(folder / "m")
    BundleSave(LocalStorage(), prefix, plan, Staging(), snapshot=snapshot).finish()
    return tuple(path.read_bytes() for path in sorted(folder.iterdir()))


@given(
    kinds=_ITEMS,
    shards=st.integers(1, 2),
    snapshot=st.booleans(),
    alignment=st.sampled_from([1, 1, 64]),
    first=st.none() | _NAMES,
)
def test_plan_in_bulk_equals_plan_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[tuple[str, int]],
    shards: int,
    snapshot: bool,
    alignment: int,
    first: str | None,
) -> None:
    """Index and data files are equal, or the error is."""
    values = _values(kinds)
    names = [f"layer/{number:03d}" for number in range(len(values))]
    if first is not None:
        names[0] = names[-1] = first  # the same name twice, if there are several
    folder = tmp_path_factory.mktemp("plans")
    outcomes: list[object] = []
    for way in ("one by one", "in bulk"):
        plan = BundlePlan(shards, alignment)
        try:
            for shard in range(shards):
                some = slice(shard, None, shards)
                if way == "in bulk":
                    plan.add_all(names[some], values[some], [None] * len(names[some]), shard=shard)
                    continue
                for name, value in zip(names[some], values[some], strict=True):
                    plan.add(name, value, shard=shard)
        except CheckpointError as error:
            outcomes.append((type(error), str(error)))
        else:
            outcomes.append(_saved(folder / way, plan, snapshot=snapshot))
    assert outcomes[0] == outcomes[1]


@given(kinds=_ITEMS)
def test_writer_in_bulk_equals_writer_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[str, int]]
) -> None:
    """BundleWriter.add_all writes what add writes for each tensor, or raises its error."""
    items = [(f"layer/{number:03d}", value) for number, value in enumerate(_values(kinds))]
    outcomes: list[object] = []
    for way in ("one by one", "in bulk"):
        folder = tmp_path_factory.mktemp("writers")
        try:
            with BundleWriter(LocalStorage(), str(folder / "m")) as writer:
                if way == "in bulk":
                    writer.add_all(iter(items))
                else:
                    for name, value in items:
                        writer.add(name, value)
        except CheckpointError as error:
            outcomes.append((type(error), str(error)))
        outcomes.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert outcomes[: len(outcomes) // 2] == outcomes[len(outcomes) // 2 :]


def test_stored_types_are_kept(tmp_path: Path) -> None:
    """A quantized type for plain integers is stored; a type of other values is refused, as by `add`."""
    values = [torch.arange(3, dtype=torch.int8)] * 3
    plan, other = BundlePlan(), BundlePlan()
    stored = [DataType.DT_QINT8, None, DataType.DT_INT8]
    plan.add_all(["a", "b", "c"], values, stored, shard=0)
    for name, value, dtype in zip("abc", values, stored, strict=True):
        other.add(name, value, shard=0, dtype=dtype)
    assert _saved(tmp_path / "bulk", plan, snapshot=False) == _saved(tmp_path / "other", other, snapshot=False)
    with pytest.raises(CheckpointError, match="cannot be stored as DT_FLOAT"):
        BundlePlan().add_all(["a"], values[:1], [DataType.DT_FLOAT], shard=0)
    with pytest.raises(CheckpointError, match="shard 1 of 1 does not exist"):
        BundlePlan().add_all(["a"], values[:1], [None], shard=1)
