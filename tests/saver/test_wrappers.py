"""Wrapped modules, such as compiled ones: every move between wrapped and plain, by every way to save and restore."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import torch_tfckpt as tfckpt
from torch_tfckpt.saveables.module_tensors import module_tensors
from torch_tfckpt.saveables.wrappers import ModuleNames, unwrapped, without_wrappers


class Net(nn.Module):
    """Two layers, one of them with buffers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.a, self.b = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2)
            with torch.no_grad():
                cast(torch.Tensor, self.a[1].running_mean).normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.b(self.a(x)))


def compiled(module: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(module, backend="eager"))


def with_part(wrap: Callable[[nn.Module], nn.Module], part: str) -> Callable[[nn.Module], nn.Module]:
    """Return a function that wraps a submodule in place."""

    def wrapped(net: nn.Module) -> nn.Module:
        parent, _, name = part.rpartition(".")
        holder = net.get_submodule(parent)
        setattr(holder, name, wrap(cast(nn.Module, getattr(holder, name))))
        return net

    return wrapped


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda net: net,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "parallel(compiled)": lambda net: nn.DataParallel(compiled(net)),
    "compiled(parallel)": lambda net: compiled(nn.DataParallel(net)),
    "averaged": AveragedModel,
    "compiled part": with_part(compiled, "a"),
    "compiled part of a part": with_part(compiled, "a.0"),
    "compiled, with a compiled part": lambda net: compiled(with_part(compiled, "a")(net)),
    "parallel part": with_part(nn.DataParallel, "b"),
    "checkpointed": checkpoint_wrapper,
    "checkpointed part": with_part(checkpoint_wrapper, "a.0"),
    "compiled(checkpointed part)": lambda net: compiled(with_part(checkpoint_wrapper, "a")(net)),
}
OTHERS = [name for name in WRAPPERS if name != "plain"]
MOVES = [(name, "plain") for name in OTHERS] + [("plain", name) for name in OTHERS]
MOVES += [(name, name) for name in OTHERS] + [("parallel", "compiled"), ("averaged", "compiled part")]
MOVES += [("compiled part", "averaged"), ("averaged", "parallel(compiled)")]


def inner(module: nn.Module) -> nn.Module:
    """Return the net, whose parts may be wrapped."""
    return unwrapped(module)


def values(module: nn.Module) -> list[torch.Tensor]:
    return [*inner(module).parameters(), *inner(module).buffers()]


def trained(name: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a wrapped net after a step of its optimizer, which is built from named parameters for some."""
    torch.manual_seed(seed)
    model = WRAPPERS[name](Net(seed))
    given: Any = model.named_parameters() if seed % 2 else model.parameters()
    optimizer = torch.optim.Adam(given)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [optimizer.state[parameter]["exp_avg"] for parameter in inner(model).parameters()]


def assert_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("seeds", [(1, 2), (2, 3)], ids=["named", "by position"])
@pytest.mark.parametrize(("source", "target"), MOVES, ids=" to ".join)
def test_savers(tmp_path: Path, source: str, target: str, seeds: tuple[int, int]) -> None:
    """Weights, buffers and the optimizer's moments."""
    (model, optimizer), (fresh, other) = trained(source, seeds[0]), trained(target, seeds[1])
    path = tfckpt.Saver({"net": model, "optimizer": optimizer}).save(tmp_path / "m")
    assert not [name for name, _ in tfckpt.list_variables(str(path)) if "_orig_mod" in name or "module" in name]
    report = tfckpt.Saver({"net": fresh, "optimizer": other}).restore(path)
    assert (report.missing, report.unexpected) == ([], [])
    assert_equal(values(fresh), values(model))
    assert_equal(moments(fresh, other), moments(model, optimizer))


@pytest.mark.parametrize(("source", "target"), MOVES, ids=" to ".join)
def test_checkpoints(tmp_path: Path, source: str, target: str) -> None:
    """The same through a CheckpointManager; everything is matched."""
    (model, optimizer), (fresh, other) = trained(source, 1), trained(target, 3)
    saving = tfckpt.CheckpointManager(tfckpt.Checkpoint(net=model, optimizer=optimizer), str(tmp_path), 3)
    path = saving.save()
    assert not [name for name, _ in tfckpt.list_variables(str(path)) if "_orig_mod" in name or "module" in name]
    tfckpt.Checkpoint(net=fresh, optimizer=other).restore(path).assert_consumed()
    assert_equal(values(fresh), values(model))
    assert_equal(moments(fresh, other), moments(model, optimizer))


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("source", "target"), MOVES, ids=" to ".join)
@pytest.mark.parametrize("naming", ["torch", "tf"])
@pytest.mark.parametrize("assign", [False, True])
def test_models(tmp_path: Path, source: str, target: str, naming: str, assign: bool) -> None:
    """save_model and load_model, in both namings."""
    model, fresh = WRAPPERS[source](Net(1)), WRAPPERS[target](Net(2))
    tfckpt.save_model(model, tmp_path / "m", naming=naming)
    report = tfckpt.load_model(fresh, tmp_path / "m", assign=assign)
    assert (report.missing, report.unexpected) == ([], [])
    assert_equal(values(fresh), values(model))


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("source", "target"), MOVES, ids=" to ".join)
@pytest.mark.parametrize("how", ["Saver", "Saver of a dict", "load_model", "load_model below a key", "Checkpoint"])
def test_state_dicts_of_wrapped_modules(tmp_path: Path, source: str, target: str, how: str) -> None:
    """Files with the names of the wrapped module, as torch and earlier versions of this package wrote them."""
    model, fresh = WRAPPERS[source](Net(1)), WRAPPERS[target](Net(2))
    key = "net/" if how in ("Saver of a dict", "load_model below a key", "Checkpoint") else ""
    tfckpt.save_file({key + name: value for name, value in model.state_dict().items()}, tmp_path / "m")
    if how == "Checkpoint":
        tfckpt.Checkpoint(net=fresh).restore(tmp_path / "m").assert_consumed()
    elif how.startswith("load_model"):
        assert tuple(tfckpt.load_model(fresh, tmp_path / "m")) == ([], [])
    else:
        assert tuple(tfckpt.Saver({"net": fresh} if key else fresh).restore(tmp_path / "m")) == ([], [])
    assert_equal(values(fresh), values(model))


class Node:
    """An object whose children are those of a module and of all its wrappers, as earlier versions saved them."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def _trackable_children(self) -> dict[str, object]:
        tensors = {**self._module._parameters, **self._module._buffers}
        return {**tensors, **{name: Node(child) for name, child in self._module._modules.items() if child is not None}}


@pytest.mark.parametrize(("source", "target"), MOVES, ids=" to ".join)
@pytest.mark.parametrize("how", ["Checkpoint", "load_model"])
def test_object_graphs_of_wrapped_modules(tmp_path: Path, source: str, target: str, how: str) -> None:
    """Checkpoints of earlier versions, in which wrappers are objects."""
    model, fresh = WRAPPERS[source](Net(1)), WRAPPERS[target](Net(2))
    path = tfckpt.Checkpoint(net=Node(model)).write(tmp_path / "m")
    if how == "load_model":
        assert tuple(tfckpt.load_model(fresh, path)) == ([], [])
    else:
        tfckpt.Checkpoint(net=fresh).read(path).assert_consumed()
    assert_equal(values(fresh), values(model))


def test_averages_are_counted(tmp_path: Path) -> None:
    """n_averaged is restored into an AveragedModel, and unchanged if a plain model was stored."""
    averaged = AveragedModel(Net(1))
    averaged.update_parameters(Net(2))
    averaged.update_parameters(Net(3))
    path = tfckpt.Saver({"net": averaged}).save(tmp_path / "saver")
    written = tfckpt.Checkpoint(net=averaged).write(tmp_path / "objects")
    tfckpt.save_model(averaged, tmp_path / "model")
    restores: list[Callable[[nn.Module], object]] = [
        lambda model: tfckpt.Saver({"net": model}).restore(path),
        lambda model: tfckpt.Checkpoint(net=model).read(written).assert_consumed(),
        lambda model: tfckpt.load_model(model, tmp_path / "model"),
    ]
    for restore in restores:
        fresh = AveragedModel(Net(4))
        restore(fresh)
        assert fresh.n_averaged.item() == 2
        assert_equal(values(fresh), values(averaged))
    plain = tfckpt.Saver({"net": Net(5)}).save(tmp_path / "plain")
    report = tfckpt.Saver({"net": averaged}).restore(plain)
    assert averaged.n_averaged.item() == 2 and report.remarks == ['not stored, and unchanged: "net/n_averaged"']


def test_a_submodule_called_module_keeps_its_name(tmp_path: Path) -> None:
    """It is not a wrapper, whatever else there is."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Net()

    holder = Holder()
    path = str(tfckpt.Saver(holder).save(tmp_path / "m"))
    assert {name for name, _ in tfckpt.list_variables(path)} == set(holder.state_dict())
    fresh = nn.DataParallel(Holder())
    tfckpt.Saver(fresh).restore(path)
    assert_equal(values(fresh), values(holder))
    objects = tfckpt.Checkpoint(net=holder).write(tmp_path / "o")
    assert any(name.startswith("net/module/") for name, _ in tfckpt.list_variables(objects))


def test_a_submodule_called_module_beside_others_is_not_ignored_in_stored_names(tmp_path: Path) -> None:
    """What is stored beside it shows that it is no wrapper, so its tensors are not those of the parent."""
    tfckpt.save_file({"n/module.weight": torch.ones(1, 1), "n/other.weight": torch.ones(1)}, tmp_path / "m")
    with pytest.raises(tfckpt.NotFoundError, match=re.escape("Key n/weight not found")):
        tfckpt.Saver({"n": nn.Linear(1, 1, bias=False)}).restore(tmp_path / "m")


def test_nested_averages_keep_their_names(tmp_path: Path) -> None:
    """Both have n_averaged, which could not be told apart without the part of the outer one."""
    model = AveragedModel(AveragedModel(nn.Linear(1, 1)))
    names = [each.name for each in module_tensors(model)]
    assert names == ["n_averaged", "module.n_averaged", "module.weight", "module.bias"]
    fresh = AveragedModel(AveragedModel(nn.Linear(1, 1)))
    model.n_averaged.fill_(3)
    tfckpt.Saver(fresh).restore(tfckpt.Saver(model).save(tmp_path / "m"))
    assert_equal(list(fresh.state_dict().values()), list(model.state_dict().values()))


def test_a_subclass_of_a_wrapper_with_parts_of_its_own(tmp_path: Path) -> None:
    """Its own submodules are stored beside those of the wrapped module."""

    class WithLoss(nn.DataParallel[nn.Module]):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.loss = nn.Linear(1, 1)

    model, fresh = WithLoss(Net(1)), WithLoss(Net(2))
    path = str(tfckpt.Saver(model).save(tmp_path / "m"))
    assert {"loss.weight", "b.weight"} <= {name for name, _ in tfckpt.list_variables(path)}
    tfckpt.Saver(fresh).restore(path)
    assert_equal(list(fresh.state_dict().values()), list(model.state_dict().values()))
    tfckpt.Checkpoint(net=fresh).read(tfckpt.Checkpoint(net=WithLoss(Net(3))).write(tmp_path / "o")).assert_consumed()


def test_tied_tensors_of_wrapped_modules(tmp_path: Path) -> None:
    """The list of other names has no parts of wrappers, either."""

    def tied() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        net[1].weight = net[0].weight
        return net

    path = str(tfckpt.Saver({"n": compiled(tied())}).save(tmp_path / "m"))
    assert [name for name, _ in tfckpt.list_variables(path)] == ["n/.shared", "n/0.weight"]
    untied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tfckpt.Saver({"n": untied}).restore(path)
    assert torch.equal(*untied.parameters())


def test_old_lists_of_other_names(tmp_path: Path) -> None:
    """As an earlier version wrote them for a compiled module."""
    value = torch.arange(4.0).reshape(2, 2)
    shared = '{"n/_orig_mod.1.weight": "n/_orig_mod.0.weight"}'
    tfckpt.save_file({"n/_orig_mod.0.weight": value, "n/.shared": shared}, tmp_path / "m")
    untied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tfckpt.Saver({"n": untied}).restore(tmp_path / "m")
    assert all(torch.equal(each, value) for each in untied.parameters())


@pytest.mark.parametrize("before", ["_orig_mod.", "module.", "module._orig_mod.", "net/module."])
def test_old_optimizer_states(tmp_path: Path, before: str) -> None:
    """Names of parameters with parts of wrappers, as earlier versions stored them."""
    net, fresh = Net(1), Net(2)
    old = torch.optim.SGD([(before + name, p) for name, p in net.named_parameters()], momentum=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    old.step()
    path = tfckpt.Saver({"optimizer": old}).save(tmp_path / "m")
    new = torch.optim.SGD(fresh.parameters(), momentum=0.5)
    others = {"other": nn.Linear(1, 1)} if "/" in before else {}
    if others:
        new.add_param_group({"params": list(others["other"].parameters())})
        old.add_param_group({"params": [(f"other/{n}", p) for n, p in nn.Linear(1, 1).named_parameters()]})
        path = tfckpt.Saver({"optimizer": old}).save(tmp_path / "m")
    tfckpt.Saver({"net": fresh, "optimizer": new, **others}).restore(path, strict=False)
    for one, other in zip(net.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(old.state[one]["momentum_buffer"], new.state[other]["momentum_buffer"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.weight", "module"], {}),
        (["module.a", "module.b"], {"a": "module.a", "b": "module.b"}),
        (["module.a", "n_averaged"], {"a": "module.a"}),
        (["module.a", "c"], {}),
        (["_orig_mod.a", "c"], {"a": "_orig_mod.a"}),
        (["_orig_mod.a", "a"], {}),
        (["_orig_mod.a", "module.a"], {"a": "_orig_mod.a"}),
        (["x._orig_mod.module.a", "x._orig_mod.module.b"],
         {"x.a": "x._orig_mod.module.a", "x.b": "x._orig_mod.module.b"}),
        (["a._checkpoint_wrapped_module.w"], {"a.w": "a._checkpoint_wrapped_module.w"}),
        (["my_orig_mod.a"], {}),
    ],
)  # fmt: skip
def test_names_without_parts_of_wrappers(names: list[str], expected: dict[str, str]) -> None:
    """Only where the part cannot be a submodule; ambiguous names are left alone."""
    assert without_wrappers(names) == expected


@pytest.mark.parametrize("name", OTHERS)
def test_names_can_be_spelled_again(name: str) -> None:
    """`spelled` is the inverse of `stored` for all entries of a state_dict."""
    model = WRAPPERS[name](Net())
    names = ModuleNames(model)
    entries = list(model.state_dict())
    assert [names.spelled(names.stored(each)) for each in entries] == entries
    assert len({names.stored(each) for each in entries}) == len(entries)
