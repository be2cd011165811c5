"""The tensors of a module, compared with torch's own state_dict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

import torch_tfckpt as tfckpt
from torch_tfckpt.saveables.module_tensors import group_shared, module_tensors, own_tensors

ATTRIBUTES = st.sampled_from("abcdef")


def add_tensor(draw: st.DrawFn, module: nn.Module, tensors: list[torch.Tensor]) -> None:
    """Register a new tensor, a tensor that another module also has, or None."""
    name = draw(ATTRIBUTES)
    if name in module._parameters or name in module._buffers or name in module._modules:
        return
    kinds: dict[str, Callable[[], torch.Tensor | None]] = {
        "parameter": lambda: nn.Parameter(torch.zeros(draw(st.integers(0, 2)))),
        "buffer": lambda: torch.zeros(draw(st.integers(0, 2))),
        "lazy parameter": lambda: nn.UninitializedParameter(),
        "lazy buffer": lambda: nn.UninitializedBuffer(),
        "meta": lambda: nn.Parameter(torch.zeros(1, device="meta")),
        "none": lambda: None,
        "none of the buffers": lambda: None,
        "shared": lambda: draw(st.sampled_from(tensors)) if tensors else None,
    }
    kind = draw(st.sampled_from(list(kinds)))
    tensor = kinds[kind]()
    if tensor is not None:
        tensors.append(tensor)
    if isinstance(tensor, nn.Parameter) or kind == "none":
        module.register_parameter(name, tensor)  # type: ignore[arg-type]
    else:
        module.register_buffer(name, tensor, persistent=draw(st.booleans()))


@st.composite
def modules(draw: st.DrawFn) -> nn.Module:
    """A tree of modules with all kinds of tensors; some tensors and modules are registered in several places."""
    root = nn.Module()
    made, tensors = [root], list[torch.Tensor]()
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(made))
        if draw(st.booleans()):
            add_tensor(draw, parent, tensors)
            continue
        name = draw(ATTRIBUTES)
        if name not in parent._modules and name not in parent._parameters and name not in parent._buffers:
            # A module that is in the tree already is shared, unless that would create a cycle.
            known = [each for each in made if parent not in each.modules()]
            module = draw(st.sampled_from([*known, nn.LazyLinear(1), nn.BatchNorm1d(1), None, nn.Module()]))
            parent.add_module(name, module)
            made.extend([module] if module is not None and module not in made else [])
    return root


@given(modules())
def test_names_and_tensors_are_those_of_state_dict(module: nn.Module) -> None:
    """Names, order and tensors of the persistent ones are equal."""
    expected = module.state_dict(keep_vars=True)
    persistent = [each for each in module_tensors(module) if each.persistent]
    assert [each.name for each in persistent] == list(expected)
    assert all(each.tensor is expected[each.name] for each in persistent)


@given(modules())
def test_all_tensors_are_torchs_parameters_and_buffers(module: nn.Module) -> None:
    """Including those that are not persistent, each under all of its names."""
    tensors = module_tensors(module)
    assert [(each.name, each.tensor) for each in tensors if each.is_parameter] == list(
        module.named_parameters(remove_duplicate=False)
    )
    assert [each.name for each in tensors if not each.is_parameter] == [
        name for name, _ in module.named_buffers(remove_duplicate=False)
    ]
    for each in tensors:
        assert getattr(each.module, each.attribute) is each.tensor
        assert module.get_submodule(each.parent.removesuffix(".")) is each.module


@given(modules())
def test_groups_are_torchs_tensors_without_duplicates(module: nn.Module) -> None:
    """One group for each tensor, in torch's order; no place is missing."""
    tensors = module_tensors(module)
    groups = group_shared(tensors)
    assert {id(group[0].tensor) for group in groups} == {id(each.tensor) for each in tensors}
    assert [group[0] for group in groups if group[0].is_parameter] == [
        next(each for each in tensors if each.tensor is parameter) for parameter in module.parameters()
    ]
    assert sorted(each.name for group in groups for each in group) == sorted(each.name for each in tensors)


@given(modules())
def test_own_tensors_are_those_without_submodules(module: nn.Module) -> None:
    """Their names are attribute names."""
    own = list(own_tensors(module))
    assert [each.name for each in own] == [each.name for each in module_tensors(module) if each.module is module]
    assert all(each.name == each.attribute for each in own)


def test_replacing_one_place_leaves_the_others() -> None:
    """A parameter stays a parameter, a buffer stays a buffer."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Identity())
    model[1].weight = model[0].weight
    for each in module_tensors(model):
        each.replace(nn.Parameter(torch.ones(1)) if each.is_parameter else torch.ones(1))
    assert model[0].weight is not model[1].weight and all(bool(value == 1) for value in model.state_dict().values())


def test_parametrized_tensors_are_the_registered_ones() -> None:
    """The computed tensor is a property of the module."""
    model = parametrizations.weight_norm(nn.Linear(2, 2))
    names = ["bias", "parametrizations.weight.original0", "parametrizations.weight.original1"]
    assert [each.name for each in module_tensors(model)] == names == list(model.state_dict())


def checkpointed() -> nn.Sequential:
    """Layers whose names activation checkpointing changes in the module, but not in the state_dict."""
    return nn.Sequential(checkpoint_wrapper(nn.BatchNorm1d(2)), checkpoint_wrapper(nn.Linear(2, 2)))


def test_names_that_a_hook_changes_are_those_of_state_dict() -> None:
    """The module and attribute are the registered ones, so that a tensor can be replaced."""
    model = checkpointed()
    tensors = module_tensors(model)
    assert [each.name for each in tensors] == list(model.state_dict()) and "1.weight" in model.state_dict()
    assert all(each.persistent and getattr(each.module, each.attribute) is each.tensor for each in tensors)


def test_tied_tensors_keep_all_names_that_a_hook_changes() -> None:
    """Each place gets one of the names, in order."""
    model = checkpointed()
    model.append(model[1])
    (weight,) = (group for group in group_shared(module_tensors(model)) if group[0].name == "1.weight")
    assert [each.name for each in weight] == ["1.weight", "2.weight"]


def dropping(name: str) -> nn.Module:
    """A layer with a hook that removes an entry from the state_dict, as models with a frozen part do."""
    model = nn.Linear(2, 2)

    def hook(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        del state[prefix + name]

    model.register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]
    return model


def test_a_tensor_that_a_hook_removes_is_not_persistent() -> None:
    """It is still listed."""
    assert [(each.name, each.persistent) for each in module_tensors(dropping("bias"))] == [
        ("weight", True), ("bias", False),
    ]  # fmt: skip


def test_a_buffer_that_a_hook_adds_is_persistent() -> None:
    """Because the state_dict contains it, however it was registered."""
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(1), persistent=False)

    def hook(module: Any, state: dict[str, Any], prefix: str, metadata: object) -> None:
        state[prefix + "kept"] = module.kept

    model.register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]
    assert [(each.name, each.persistent) for each in module_tensors(model)] == [("kept", True)]


def fill_with(value: float, model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            tensor.fill_(value)
    return model


def load_by_load_model(model: nn.Module, path: Path) -> None:
    assert tfckpt.load_model(model, path).missing == []


def load_by_saver(model: nn.Module, path: Path) -> None:
    tfckpt.Saver(model).restore(path)


def load_by_init(model: nn.Module, path: Path) -> None:
    assert sorted(tfckpt.init_from_checkpoint(model, path, {"/": "/"})) == sorted(model.state_dict())


@pytest.mark.parametrize("load", [load_by_load_model, load_by_saver, load_by_init])
@pytest.mark.parametrize(
    "make",
    [
        checkpointed,
        lambda: dropping("bias"),
        lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)),
    ],
    ids=["renamed", "left out", "plain"],
)
def test_all_readers_use_the_names_of_state_dict(
    tmp_path: Path, load: Callable[[nn.Module, Path], None], make: Callable[[], nn.Module]
) -> None:
    """save_model, Saver, load_model and init_from_checkpoint use the same names for a module."""
    tfckpt.save_model(fill_with(3, make()), tmp_path / "m")
    model = fill_with(0, make())
    load(model, tmp_path / "m")
    assert all(bool((value == 3).all()) for value in model.state_dict().values())


def test_optimizer_state_has_the_names_of_the_parameters(tmp_path: Path) -> None:
    """Also if a hook changes them: state and parameter are found under the same name."""
    model = checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    path = tfckpt.Saver({"model": model, "optimizer": optimizer}).save(tmp_path / "m", write_meta_graph=False)
    assert path is not None
    with tfckpt.load_checkpoint(path) as reader:
        assert {"model/1.weight", "optimizer/state/1.weight/momentum_buffer"} <= set(reader.keys())
