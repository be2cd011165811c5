"""Tensors that are not plain are refused by name; views of any kind are saved and restored right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from both_ways import in_both_ways, moved, restored, saved
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.saveables.identity import identity_of
from torch_tfckpt.values import check_plain


class Wrapper(torch.Tensor):
    """Two tensors that look like one, as a quantized tensor of a library."""

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> "Wrapper":
        made: Any = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)
        made.data_part = data
        return made  # type: ignore[no-any-return]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["data_part"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return cls(args[0].data_part)
        raise NotImplementedError(func)


UINT4: torch.dtype = vars(torch)["uint4"]  # not in the stubs


class Named(torch.Tensor):
    """A subclass with methods only."""


def escaped_from_vmap() -> torch.Tensor:
    """Return a tensor that has left its transform."""
    found: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        found.append(x)
        return x

    torch.vmap(keep)(torch.ones(3, 2))
    return found[0]


def fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(3)


def masked() -> torch.Tensor:
    from torch.masked import masked_tensor

    made: torch.Tensor = masked_tensor(torch.ones(3), torch.tensor([True, False, True]))
    return made


REFUSED: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "coo": (lambda: torch.eye(3).to_sparse(), r"torch.sparse_coo tensor.*to_dense\(\).*tensor.indices\(\)"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), r"torch.sparse_csr tensor.*tensor.crow_indices\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), r"nested tensor.*unbind\(\)"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        r"NestedTensor.*tensor.offsets\(\)",
    ),
    "masked": (masked, r"MaskedTensor.*get_mask\(\)"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), r"quantized.*dequantize\(\)"),
    "meta": (lambda: torch.ones(3, device="meta"), r"meta tensor.*to_empty"),
    "fake": (fake, r"FakeTensor.*outside of the FakeTensorMode"),
    "functional": (lambda: torch._to_functional_tensor(torch.ones(3)), "belongs to a transform"),
    "vmap": (escaped_from_vmap, "belongs to a transform"),
    "wrapper": (lambda: Wrapper(torch.ones(3)), r"Wrapper,.*Save the tensors in it: tensor.data_part"),
    "lazy": (nn.UninitializedParameter, "not initialised yet.*Run the module once"),
    "complex32": (lambda: torch.ones(3, dtype=torch.complex32), "torch.complex32 has no TensorFlow element type"),
    "uint4": (lambda: torch.ones(3, dtype=torch.uint8).view(UINT4), r"torch.uint4 has no.*view\(torch.uint8\)"),
    "e8m0": (lambda: torch.ones(3).to(torch.float8_e8m0fnu), r"float8_e8m0fnu has no.*view\(torch.uint8\)"),
}
if not hasattr(torch, "float8_e8m0fnu"):  # of newer versions of torch
    del REFUSED["e8m0"]
# torch's prototypes warn when such a tensor is made.
prototypes = pytest.mark.filterwarnings(
    "ignore:.*(prototype|beta state|ComplexHalf support is experimental|deprecated).*:UserWarning"
)


def holding(tensor: torch.Tensor) -> dict[str, Any]:
    """Return objects that have the tensor in other places: a module, a container, the state of an optimizer."""
    module = nn.Module()
    module.register_buffer("key", tensor)
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.state[net.weight]["key"] = tensor
    return {"module": {"m": module}, "container": {"s": {"key": tensor}}, "state": {"m": net, "o": optimizer}}


@prototypes
@in_both_ways
@pytest.mark.parametrize("name", REFUSED)
def test_a_tensor_that_is_not_plain_is_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    """As a value, in a module, in a container and in an optimizer; what to do is in the message; nothing is written."""
    make, text = REFUSED[name]
    places = {"value": {"key": make()}, **holding(make())}
    for objects in places.values():
        with pytest.raises(tfckpt.CheckpointError, match=rf"(?s)key.*{text}"):
            saved(kind, objects, tmp_path)
    assert not list(tmp_path.iterdir())


@prototypes
@pytest.mark.parametrize("name", REFUSED)
def test_save_file_and_version_1_refuse_it_too(tmp_path: Path, name: str) -> None:
    """The rule is the same for every writer."""
    make, text = REFUSED[name]
    with pytest.raises(tfckpt.CheckpointError, match=rf'(?s)"key".*{text}'):
        tfckpt.save_file({"key": make()}, tmp_path / "a")
    with pytest.raises(tfckpt.CheckpointError, match=rf'(?s)"key".*{text}'):
        tfckpt.Saver({"key": make()}, write_version=tfckpt.SaverDef.V1).save(tmp_path / "b")


@prototypes
@in_both_ways
@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("lazy", "complex32", "uint4", "e8m0")])
def test_a_restore_into_it_is_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    """Before anything is assigned."""
    other = torch.zeros(1)
    path = saved(kind, {"key": torch.ones(3), "a": torch.ones(1)}, tmp_path)
    with pytest.raises(tfckpt.CheckpointError, match=r'(?s)"key'):
        restored(kind, path, {"key": REFUSED[name][0](), "a": other})
    assert not other.any()


def test_nested_dicts_of_save_file_are_refused_with_a_hint(tmp_path: Path) -> None:
    """The idiom of torch.save."""
    model = nn.Linear(1, 1)
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"model": .*Pass one flat dict of tensors'):
        tfckpt.save_file({"model": model.state_dict()}, tmp_path / "a")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2), nn.Parameter(torch.ones(2)), nn.Buffer(torch.ones(2)), torch.ones(2).as_subclass(Named)],
    ids=["tensor", "parameter", "buffer", "subclass"],
)
def test_plain_tensors(tmp_path: Path, tensor: torch.Tensor) -> None:
    """Subclasses without a memory of their own are plain."""
    check_plain("x", tensor)
    fresh = torch.zeros(2)
    moved("Saver", {"x": tensor}, {"x": fresh}, tmp_path)
    assert fresh.tolist() == [1, 1]


# A tensor of distinct values, and how to take a view of it.
COMPLEX = torch.complex(torch.arange(6.0), torch.arange(6.0) + 10)
VIEWS: dict[str, tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]] = {
    "column of one row": (torch.arange(8.0).reshape(1, 8), lambda x: x[:, 3]),
    "every second of two": (torch.arange(2).to(torch.bfloat16), lambda x: x[::2]),
    "diagonal of one row": (torch.arange(4).reshape(1, 4), lambda x: x.diagonal()),
    "one byte with a stride": (torch.arange(8, dtype=torch.uint8).reshape(1, 8), lambda x: x[:, 5]),
    "one float8 with a stride": (torch.arange(8.0).to(torch.float8_e4m3fn).reshape(1, 8), lambda x: x[:, 5]),
    "one bool of a column": (torch.tensor([[False, True]]), lambda x: x[:, 1]),
    "1 x 1 of a matrix": (torch.arange(12.0).reshape(3, 4), lambda x: x[1:2, 2:3]),
    "one complex": (COMPLEX.clone().reshape(1, 6), lambda x: x[:, 2]),
    "transposed": (torch.arange(6.0).reshape(2, 3), lambda x: x.T),
    "empty with odd strides": (torch.arange(6.0).reshape(2, 3), lambda x: x.T[:, :0]),
    "no columns": (torch.ones(3, 4), lambda x: x[:, 4:]),
    "conjugate": (COMPLEX.clone(), lambda x: x.conj()),
    "conjugate of one": (COMPLEX.clone()[:1], lambda x: x.conj()),
    "real part": (COMPLEX.clone(), lambda x: x.real),
    "imaginary part": (COMPLEX.clone(), lambda x: x.imag),
    "negative": (COMPLEX.clone(), lambda x: x.conj().imag),
    "one negative": (COMPLEX.clone()[:1], lambda x: x.conj().imag),
    "other dtype": (torch.arange(6.0), lambda x: x.view(torch.int32)),
    "bytes": (torch.arange(3.0), lambda x: x.view(torch.uint8)),
    "scalar of a vector": (torch.arange(3.0), lambda x: x[1]),
}


@in_both_ways
@pytest.mark.parametrize("view", VIEWS)
def test_views(tmp_path: Path, kind: str, view: str) -> None:
    """The view has its values again; the rest of the memory does not change."""
    base, take = VIEWS[view]
    fresh = torch.zeros_like(base)
    moved(kind, {"x": take(base)}, {"x": take(fresh)}, tmp_path)
    assert torch.equal(take(fresh).resolve_conj().resolve_neg(), take(base).resolve_conj().resolve_neg())
    expected = torch.zeros_like(base)
    take(expected).copy_(take(base))
    assert torch.equal(fresh, expected)


@pytest.mark.parametrize("view", VIEWS)
def test_views_in_the_background_and_in_version_1(tmp_path: Path, view: str) -> None:
    """The bytes are those of a contiguous copy."""
    base, take = VIEWS[view]
    plain = take(base).resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    with tfckpt.Saver({"x": take(base)}) as saver:
        path = saver.save_async(tmp_path / "a").result()
    assert path is not None
    assert tfckpt.load_variable(path, "x").tolist() == plain.tolist()
    if plain.dtype in (torch.float32, torch.int64, torch.uint8, torch.bool, torch.complex64):
        path = tfckpt.Saver({"x": take(base)}, write_version=tfckpt.SaverDef.V1).save(tmp_path / "b")
        assert path is not None
        assert torch.equal(tfckpt.load_variable(path, "x"), plain)


@in_both_ways
@pytest.mark.parametrize("view", ["conjugate", "negative", "other dtype", "real part"])
def test_a_view_is_not_a_second_name_of_its_tensor(tmp_path: Path, kind: str, view: str) -> None:
    """A module with both: each has a key, and both are right after the restore."""
    base, take = VIEWS[view]

    def module(tensor: torch.Tensor) -> nn.Module:
        made = nn.Module()
        made.register_buffer("one", tensor)
        made.register_buffer("other", take(tensor))
        return made

    fresh = torch.zeros_like(base)
    moved(kind, {"m": module(base)}, {"m": module(fresh)}, tmp_path)
    assert torch.equal(fresh, base)
    assert identity_of(base) != identity_of(take(base))
    assert identity_of(take(base)) == identity_of(take(base))


@in_both_ways
def test_an_expanded_tensor_can_be_saved_only(tmp_path: Path, kind: str) -> None:
    """Its elements share memory, so a restore would have to choose one; one element is fine."""
    path = saved(kind, {"x": torch.tensor(2.0).expand(3)}, tmp_path)
    with pytest.raises(tfckpt.InvalidArgumentError, match="expanded"):
        restored(kind, path, {"x": torch.tensor(0.0).expand(3)})
    fresh = torch.zeros(3)
    restored(kind, path, {"x": fresh})
    assert fresh.tolist() == [2, 2, 2]
    moved(kind, {"y": torch.tensor(2.0).expand(1)}, {"y": torch.tensor(0.0).expand(1)}, tmp_path)
