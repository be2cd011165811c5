"""Modules: parameters and buffers in place, shared tensors once, extra state."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saveables_files import restore, save
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.saveables.var_list import VarList


class Tied(nn.Module):
    """Two layers that share their weight, or not."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3, bias=False)
        if tied:
            self.decoder.weight = self.encoder.weight


class Counted(nn.Module):
    """A module with extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.extra: Any = None

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(one, other) for one, other in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def filled(module: nn.Module) -> nn.Module:
    """Give every tensor different values."""
    with torch.no_grad():
        for number, tensor in enumerate(module.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + number)
    return module


def shared_text(prefix: Path, key: str) -> object:
    text = tfckpt.load_variable(prefix, key)
    assert isinstance(text, np.ndarray)
    return json.loads(text.item())


@pytest.mark.parametrize(("form", "prefix"), [(lambda m: m, ""), (lambda m: {"net": m}, "net/")], ids=["bare", "keyed"])
def test_a_module_is_restored_in_place(tmp_path: Path, form: Callable[[nn.Module], Any], prefix: str) -> None:
    """Names are those of state_dict, buffers are included, and the Parameters stay the same objects."""
    model, fresh = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    filled(model)
    parameters = list(fresh.parameters())
    assert save(form(model), tmp_path / "ckpt") == sorted(prefix + name for name in model.state_dict())
    restore(form(fresh), tmp_path / "ckpt")
    assert same_state(model, fresh)
    assert [id(p) for p in fresh.parameters()] == [id(p) for p in parameters] and all(
        p.requires_grad for p in parameters
    )


def test_a_modules_tensors_are_looked_up_at_each_save() -> None:
    """Tensors may be replaced after construction, as module.double() does, and buffers may appear."""
    model = nn.Linear(1, 1)
    var_list = VarList({"m": model})
    model.double().register_buffer("seen", torch.zeros(1))
    assert [(each.name, each.specs[0].dtype) for each in var_list.to_save()] == [
        ("m/bias", DataType.DT_DOUBLE), ("m/seen", DataType.DT_FLOAT), ("m/weight", DataType.DT_DOUBLE),
    ]  # fmt: skip


def test_a_shared_tensor_is_stored_once(tmp_path: Path) -> None:
    """It is stored under its first name; ".shared" lists its other names, and exists only if there are any."""
    model = filled(Tied())
    assert save({"m": model}, tmp_path / "a") == ["m/.shared", "m/encoder.weight"]
    assert shared_text(tmp_path / "a", "m/.shared") == {"m/decoder.weight": "m/encoder.weight"}
    assert save(model, tmp_path / "b") == [".shared", "encoder.weight"]
    assert save(Tied(tied=False), tmp_path / "c") == ["decoder.weight", "encoder.weight"]


@pytest.mark.parametrize("form", [lambda m: m, lambda m: {"net": m}], ids=["bare", "keyed"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_file_restores_tied_and_untied_modules(
    tmp_path: Path, form: Callable[[nn.Module], Any], tied: bool
) -> None:
    """The untied one has the value in both places."""
    model, fresh = filled(Tied()), Tied(tied)
    save(form(model), tmp_path / "ckpt")
    restore(form(fresh), tmp_path / "ckpt")
    assert torch.equal(fresh.encoder.weight, model.get_parameter("encoder.weight"))
    assert torch.equal(fresh.decoder.weight, fresh.encoder.weight)


def test_a_tied_module_reads_an_untied_file_and_a_file_with_only_the_second_name(tmp_path: Path) -> None:
    """If both names are stored, the first is read; if only the second is stored, the second."""
    value = torch.arange(9.0).reshape(3, 3)
    tfckpt.save_file({"encoder.weight": value, "decoder.weight": value + 1}, tmp_path / "both")
    tfckpt.save_file({"decoder.weight": value + 2}, tmp_path / "second")
    tfckpt.save_file({"x": value + 3, ".shared": '{"decoder.weight": "x"}'}, tmp_path / "other")
    for prefix, added in (("both", 0), ("second", 2), ("other", 3)):
        model = Tied()
        restore(model, tmp_path / prefix)
        assert torch.equal(model.encoder.weight, value + added)


def test_a_tensor_shared_by_two_modules_is_stored_once(tmp_path: Path) -> None:
    """For example an encoder and a decoder with one embedding; each alone finds it in the file."""
    encoder, decoder = nn.Embedding(2, 2), nn.Linear(2, 2, bias=False)
    decoder.weight = encoder.weight
    assert save({"e": encoder, "d": decoder}, tmp_path / "ckpt") == ["d/weight", "e/.shared"]
    assert shared_text(tmp_path / "ckpt", "e/.shared") == {"e/weight": "d/weight"}
    fresh = nn.Embedding(2, 2)
    restore({"e": fresh}, tmp_path / "ckpt")
    assert torch.equal(fresh.weight, encoder.weight)


def test_a_missing_tensor_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    """Its key is not found; a file without aliases makes no difference."""
    tfckpt.save_file({"encoder.weight": torch.zeros(3, 3), "y/.shared": torch.zeros(1)}, tmp_path / "ckpt")
    with pytest.raises(NotFoundError, match=r"Key decoder\.weight not found in checkpoint"):
        restore(Tied(tied=False), tmp_path / "ckpt")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 5}', b"\xff"])
def test_a_hostile_list_of_aliases_is_data_loss(tmp_path: Path, text: str | bytes) -> None:
    """It is read only if a name is missing."""
    tfckpt.save_file({".shared": text, "encoder.weight": torch.zeros(3, 3)}, tmp_path / "ckpt")
    restore(Tied(), tmp_path / "ckpt")
    with pytest.raises(DataLossError, match=r'"\.shared" is '):
        restore(Tied(tied=False), tmp_path / "ckpt")


@pytest.mark.parametrize("extra", [{"seen": 5, "mean": torch.ones(2)}, torch.ones(3), None, [1, (2, 3)]])
def test_extra_state_is_json_with_its_tensors(tmp_path: Path, extra: Any) -> None:
    """get_extra_state and set_extra_state of the module and its children are called; nothing is pickled."""
    model, fresh = nn.ModuleDict({"child": Counted()}), nn.ModuleDict({"child": Counted()})
    model["child"].extra = extra
    names = save({"m": model}, tmp_path / "ckpt")
    assert {"m/child.weight", "m/child._extra_state"} <= set(names)
    restore({"m": fresh}, tmp_path / "ckpt")
    assert repr(fresh["child"].extra) == repr(extra)
    root = Counted()
    root.extra = extra
    save(root, tmp_path / "root")
    other = Counted()
    restore(other, tmp_path / "root")
    assert repr(other.extra) == repr(extra)


def test_extra_state_that_could_only_be_pickled_is_rejected() -> None:
    """TypeError with the path."""
    model = Counted()
    model.extra = {"hook": print}
    with pytest.raises(TypeError, match=r'"m/_extra_state/hook" is a builtins.builtin_function_or_method'):
        VarList({"m": model}).to_save()


def test_copies_in_the_state_dict_are_restored_by_load_state_dict(tmp_path: Path) -> None:
    """A hook puts copies into state_dict: a restore in place would fill the copies and be lost."""
    model, fresh = filled(nn.Linear(1, 1)), nn.Linear(1, 1)

    def hook(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        state["weight"] = state["weight"].clone()

    for each in (model, fresh):
        each.register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]
    save({"m": model}, tmp_path / "m")
    restore({"m": fresh}, tmp_path / "m")
    assert same_state(model, fresh)


def test_entries_that_nothing_would_load_are_rejected() -> None:
    """A hook adds an entry that is not a tensor of the module, and no hook takes it out again."""
    model = nn.Linear(1, 1)

    def hook(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        state["more"] = state["weight"].clone()

    model.register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]
    with pytest.raises(UnimplementedError, match=r'"m/more".*cannot be restored in place'):
        VarList({"m": model}).to_save()


def test_lazy_parameters_are_rejected_until_they_have_a_shape() -> None:
    """By the save, not by the constructor: the first forward pass may happen in between."""
    model = nn.LazyLinear(2)
    var_list = VarList({"m": model})
    with pytest.raises(InvalidArgumentError, match='"m/weight" is not initialised yet'):
        var_list.to_save()
    model(torch.zeros(1, 3))
    assert [each.name for each in var_list.to_save()] == ["m/bias", "m/weight"]
