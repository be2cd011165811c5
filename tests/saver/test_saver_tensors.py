"""Saver on all kinds of tensors: strides, dtypes, parameters, buffers, shared memory, meta tensors."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from saver_files import VERSIONS, names_in, same

import torch_tfckpt as tfckpt
from torch_tfckpt import Saver, SaverDef, SaveSpec, Variable
from torch_tfckpt.dtypes import STORED_AS
from torch_tfckpt.saveables.save_spec import SaveableObject

ASYNC = pytest.mark.parametrize("asynchronously", [False, True], ids=["sync", "async"])
# Dtypes that version 1 can store (docs/formats/v1.md).
OF_VERSION_1 = {
    *(torch.float32, torch.float64, torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.complex64, torch.complex128, torch.float16, torch.uint16),
}


def save(saver: Saver, path: Path, asynchronously: bool) -> str:
    saved = saver.save_async(path).result() if asynchronously else saver.save(path)
    assert saved is not None
    return saved


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return random bits without signalling NaNs, which not every copy preserves."""
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.randint(0, 127, (size,), dtype=torch.uint8).view(dtype).reshape(shape)


@ASYNC
@pytest.mark.parametrize("sharded", [False, True])
def test_every_dtype(tmp_path: Path, asynchronously: bool, sharded: bool) -> None:
    """Values are bitwise equal, including bfloat16 and float8; scalars, empty tensors and 3 dimensions."""
    tensors = {f"{dtype}{shape}": random_bits(shape, dtype) for dtype in STORED_AS for shape in ((), (0, 3), (2, 3, 5))}
    path = save(Saver(tensors, sharded=sharded), tmp_path / "m", asynchronously)
    restored = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    Saver(restored, sharded=sharded).restore(path)
    for name, tensor in tensors.items():
        assert same(tensor, restored[name]), name


@ASYNC
def test_every_dtype_of_version_1(tmp_path: Path, asynchronously: bool) -> None:
    """Dtypes of version 1 are restored; others raise an error that names the tensor, before any write."""
    for dtype in STORED_AS:
        tensor = random_bits((2, 3), dtype)
        saver = Saver({"a": tensor}, write_version=SaverDef.V1)
        if dtype in OF_VERSION_1:
            restored = torch.zeros_like(tensor)
            Saver({"a": restored}).restore(save(saver, tmp_path / str(dtype), asynchronously))
            assert same(tensor, restored), dtype
        else:
            before = names_in(tmp_path)
            with pytest.raises((tfckpt.UnimplementedError, tfckpt.InvalidArgumentError), match='"a"'):
                save(saver, tmp_path / str(dtype), asynchronously)
            assert names_in(tmp_path) == before


def base() -> torch.Tensor:
    return torch.arange(24.0).reshape(4, 6)


@VERSIONS
@ASYNC
@pytest.mark.parametrize(
    "view",
    [
        lambda: base().T,
        lambda: base()[:, 1:5],
        lambda: base()[::2, ::3],
        lambda: base().permute(1, 0).reshape(2, 3, 4).permute(2, 0, 1),
        lambda: base().flip(0)[1],
        lambda: base()[2, 3],
        lambda: base()[:0],
        lambda: torch.view_as_real(torch.complex(base(), -base()))[..., 1],
        lambda: torch.complex(base(), -base()).conj(),
        lambda: torch.complex(base(), -base()).conj().imag,
        lambda: (
            base().to(memory_format=torch.contiguous_format)[None, :, :, None].to(memory_format=torch.channels_last)
        ),
    ],
)
def test_views(tmp_path: Path, version: int, asynchronously: bool, view: Callable[[], torch.Tensor]) -> None:
    """Logical values are saved whatever the strides, and restored in place with the strides kept."""
    tensor = view()
    expected = tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    saver = Saver({"v": tensor}, write_version=version)
    path = save(saver, tmp_path / "m", asynchronously)
    assert torch.equal(torch.as_tensor(tfckpt.load_variable(path, "v")), expected)
    stride, memory = tensor.stride(), tensor.data_ptr()
    tensor.zero_()
    saver.restore(path)
    assert torch.equal(tensor, expected)
    assert (tensor.stride(), tensor.data_ptr()) == (stride, memory)


@ASYNC
def test_an_expanded_tensor(tmp_path: Path, asynchronously: bool) -> None:
    """It is saved with its full shape; restoring into it is rejected, since its elements share memory."""
    row = torch.tensor([1.0, 2.0])
    path = save(Saver({"v": row.expand(3, 2)}), tmp_path / "m", asynchronously)
    whole = torch.zeros(3, 2)
    Saver({"v": whole}).restore(path)
    assert whole.tolist() == [[1.0, 2.0]] * 3
    with pytest.raises(ValueError, match="expanded"):
        Saver({"v": row.expand(3, 2)}).restore(path)
    assert row.tolist() == [1.0, 2.0]


@VERSIONS
@ASYNC
@pytest.mark.parametrize("sharded", [False, True])
def test_a_meta_tensor(tmp_path: Path, version: int, asynchronously: bool, sharded: bool) -> None:
    """Saving and restoring a meta tensor raise an error, and nothing is written."""
    saver = Saver({"a": torch.zeros(2), "v": torch.zeros(2, device="meta")}, write_version=version, sharded=sharded)
    with pytest.raises(tfckpt.InvalidArgumentError, match='"v" is a meta tensor'):
        save(saver, tmp_path / "m", asynchronously)
    assert names_in(tmp_path) == []
    path = Saver({"a": torch.ones(2), "v": torch.ones(2)}).save(tmp_path / "full")
    with pytest.raises(tfckpt.InvalidArgumentError, match="meta device"):
        saver.restore(path)


@VERSIONS
@ASYNC
def test_a_spec_without_a_value(tmp_path: Path, version: int, asynchronously: bool) -> None:
    """A spec whose tensor is None, or whose function returns None, is named; nothing is written."""
    for spec in (SaveSpec(None, "", "v"), SaveSpec(lambda: None, "", "v", torch.float32, "cpu")):
        saver = Saver([SaveableObject(None, [spec], "v")], write_version=version)
        with pytest.raises(tfckpt.InvalidArgumentError, match='"v" has no value yet'):
            save(saver, tmp_path / "m", asynchronously)
    assert names_in(tmp_path) == []


def test_parameters_keep_their_properties(tmp_path: Path) -> None:
    """Object, memory, requires_grad and grad are kept, and no operation is recorded for autograd."""
    model = torch.nn.Linear(3, 2)
    model(torch.randn(4, 3)).sum().backward()
    weight, memory, gradient = model.weight, model.weight.data_ptr(), model.weight.grad
    saver = Saver(model)
    path = saver.save(tmp_path / "m")
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    saver.restore(path)
    assert model.weight is weight and weight.data_ptr() == memory and weight.grad is gradient
    assert torch.equal(weight, before) and weight.requires_grad and weight.is_leaf and weight.grad_fn is None


def test_a_tensor_in_the_middle_of_a_graph(tmp_path: Path) -> None:
    """A result with a gradient function is saved like any other and can still be differentiated."""
    source = torch.ones(2, requires_grad=True)
    result = source * 3
    path = Saver({"v": result}).save(tmp_path / "m")
    assert torch.equal(torch.as_tensor(tfckpt.load_variable(str(path), "v")), torch.full((2,), 3.0))
    torch.autograd.backward([result.sum()])
    assert source.grad is not None and source.grad.tolist() == [3.0, 3.0]


def test_buffers(tmp_path: Path) -> None:
    """Persistent buffers are saved, integers included, under their names in state_dict; others are not."""
    model = torch.nn.BatchNorm1d(3)
    model.register_buffer("scratch", torch.ones(2), persistent=False)
    model(torch.randn(8, 3))
    saver = Saver({"norm": model})
    path = saver.save(tmp_path / "m")
    assert sorted(tfckpt.load_file(str(path))) == sorted(f"norm/{name}" for name in model.state_dict())
    before = copy.deepcopy(model.state_dict())
    model.reset_running_stats()
    model.scratch.zero_()  # type: ignore[operator]
    saver.restore(path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.num_batches_tracked.item() == 1 and model.scratch.tolist() == [0.0, 0.0]  # type: ignore[operator,union-attr]


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Embedding(5, 3)
        self.decoder = torch.nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.encoder.weight


@ASYNC
@pytest.mark.parametrize("sharded", [False, True])
def test_tied_weights(tmp_path: Path, asynchronously: bool, sharded: bool) -> None:
    """A module's shared tensor is stored once and remains shared; a dictionary of both names is rejected."""
    model = Tied()
    path = save(Saver({"model": model}, sharded=sharded), tmp_path / "m", asynchronously)
    stored = tfckpt.load_file(path)
    assert sum(isinstance(value, torch.Tensor) for value in stored.values()) == 1
    other = Tied()
    Saver({"model": other}, sharded=sharded).restore(path)
    assert other.decoder.weight is other.encoder.weight
    assert torch.equal(other.encoder.weight, model.encoder.weight)
    with pytest.raises(ValueError, match="The same saveable will be restored with two names: two"):
        Saver({"one": model.encoder.weight, "two": model.decoder.weight})


def test_a_modules_tensors_are_looked_up_at_each_save(tmp_path: Path) -> None:
    """A parameter replaced after the saver was created is the one that is saved and restored."""
    model = torch.nn.Linear(2, 2)
    saver = Saver(model)
    model.weight = torch.nn.Parameter(torch.full((2, 2), 5.0))
    path = saver.save(tmp_path / "m")
    model.weight = torch.nn.Parameter(torch.zeros(2, 2))
    saver.restore(path)
    assert model.weight.tolist() == [[5.0] * 2] * 2


@VERSIONS
@ASYNC
def test_strings_and_numpy_arrays(tmp_path: Path, version: int, asynchronously: bool) -> None:
    """SaveSpec accepts them; changes after save_async has returned are not in the file."""
    numbers, texts = np.arange(3.0), np.array([b"a", b"bc"], dtype=object)
    specs = [SaveSpec(numbers, "", "numbers"), SaveSpec(texts, "", "texts"), SaveSpec("one", "", "text")]
    saver = Saver([SaveableObject(None, specs, "arrays")], write_version=version)
    if asynchronously:
        handle = saver.save_async(tmp_path / "m")
        numbers[:] = -1.0
        texts[:] = [b"-", b"-"]
        path = handle.result()
    else:
        path = saver.save(tmp_path / "m")
    stored = tfckpt.load_file(str(path))
    assert stored["numbers"].tolist() == [0.0, 1.0, 2.0]
    assert stored["texts"].tolist() == [b"a", b"bc"] and stored["text"].tolist() == b"one"


def test_parts_of_a_tensor(tmp_path: Path) -> None:
    """Views of one tensor under two names are separate: each is restored into its own elements."""
    whole = torch.arange(6.0)
    saver = Saver({"left": whole[:3], "right": Variable(whole[3:], "right")})
    path = saver.save(tmp_path / "m")
    whole.zero_()
    saver.restore(path)
    assert whole.tolist() == [0, 1, 2, 3, 4, 5]
