"""BundleSave: makes the same checkpoint as BundleWriter, from a plan, while the tensors may change."""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.save import BundleSave
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.format.tensor_slice import TensorSlice
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.transfer.staging import Staging, StagingOptions

MIB = 1024 * 1024
SMALL = StagingOptions(buffer_bytes=MIB, async_bytes=2 * MIB, save_bytes=2 * MIB)
Tensors = Mapping[str, torch.Tensor]


def begin(prefix: Path, tensors: Tensors, *, shards: int, snapshot: bool) -> BundleSave:
    plan = BundlePlan(shards)
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        plan.add(name, tensor, shard=number % shards)
    return BundleSave(LOCAL, str(prefix), plan, Staging(SMALL), snapshot=snapshot)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
SHAPES = st.sampled_from([(), (0,), (3,), (2, 5), (300, 1000)])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex128])


@given(
    shapes=st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), max_size=8),
    shards=st.integers(1, 3),
    snapshot=st.booleans(),
)
def test_files_equal_those_of_bundle_writer(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]],
    shards: int,
    snapshot: bool,
) -> None:
    """Byte-identical index and shards: fast path == general path."""
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in shapes.items()}
    ours, theirs = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
    begin(ours / "m", tensors, shards=shards, snapshot=snapshot).finish()
    with BundleWriter(LOCAL, str(theirs / "m"), num_shards=shards) as writer:
        for number, (name, tensor) in enumerate(sorted(tensors.items())):
            writer.add(name, tensor, shard=number % shards)
    assert contents(ours) == contents(theirs)


def test_slices_are_planned_like_tensors(tmp_path: Path) -> None:
    """Two slices in two shards read as the whole tensor."""
    whole = torch.arange(20.0).reshape(4, 5)
    plan = BundlePlan(2)
    for shard, text in enumerate(("0,2:-", "2,2:-")):
        part = TensorSlice.parse(text)
        plan.add("t", whole[part.to_index()], shard=shard, part=((4, 5), part))
    BundleSave(LOCAL, str(tmp_path / "m"), plan, Staging(SMALL), snapshot=False).finish()
    assert torch.equal(torch.as_tensor(tfckpt.load_variable(tmp_path / "m", "t")), whole)


def test_only_temporary_files_exist_before_finish(tmp_path: Path) -> None:
    """Files have temporary names only, and `abandon` removes them."""
    save = begin(tmp_path / "m", {"a": torch.ones(3)}, shards=2, snapshot=True)
    assert all("tempstate" in name for name in contents(tmp_path))
    save.abandon()
    assert contents(tmp_path) == {}


def test_an_invalid_plan_creates_no_file(tmp_path: Path) -> None:
    """Wrong names, values and slices are detected before a file is created."""
    plan = BundlePlan()
    plan.add("a", torch.ones(3), shard=0)
    with pytest.raises(tfckpt.InvalidArgumentError, match="Adding duplicate key"):
        plan.add("a", torch.ones(3), shard=0)
    with pytest.raises(tfckpt.InvalidArgumentError, match="meta"):
        plan.add("b", torch.ones(3, device="meta"), shard=0)
    for text in ("0,2", "1,2"):
        plan.add("c", torch.ones(2), shard=0, part=((3,), TensorSlice.parse(text)))
    with pytest.raises(tfckpt.InvalidArgumentError, match="Overlapping slices"):
        BundleSave(LOCAL, str(tmp_path / "m"), plan, Staging(SMALL), snapshot=False)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("mib", [1, 6])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
def test_changes_after_staging_do_not_affect_the_file(tmp_path: Path, mib: int, device: str) -> None:
    """20 saves; another thread overwrites everything once `staged` is set: the file has the earlier values."""
    values = {f"w{number}": torch.zeros(mib * MIB // 8, device=device) for number in range(2)}
    for step in range(20):
        for value in values.values():
            value.fill_(step)
        save = begin(tmp_path / "m", values, shards=2, snapshot=True)

        def train(save: BundleSave = save) -> None:
            assert save.staged.wait(60)
            for value in values.values():
                value.fill_(-1)

        training = threading.Thread(target=train)
        training.start()
        save.finish()
        training.join()
        loaded = tfckpt.load_file(tmp_path / "m")
        assert all((torch.as_tensor(value) == step).all() for value in loaded.values()), f"step {step}"
