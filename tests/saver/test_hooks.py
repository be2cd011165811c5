"""Modules with hooks and methods of their own for their state_dict: these run whenever a module is restored."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import torch_tfckpt as tfckpt
from torch_tfckpt.saveables.state_dicts import loads_state_dict


def through_saver(source: nn.Module, target: nn.Module, path: Path) -> None:
    tfckpt.Saver({"net": target}).restore(tfckpt.Saver({"net": source}).save(path))


def through_bare_saver(source: nn.Module, target: nn.Module, path: Path) -> None:
    tfckpt.Saver(target).restore(tfckpt.Saver(source).save(path))


def through_sequential_saver(source: nn.Module, target: nn.Module, path: Path) -> None:
    tfckpt.Saver({"net": target}, restore_sequentially=True).restore(tfckpt.Saver({"net": source}).save(path))


def through_checkpoint(source: nn.Module, target: nn.Module, path: Path) -> None:
    tfckpt.Checkpoint(net=target).read(tfckpt.Checkpoint(net=source).write(path)).assert_consumed()


def through_checkpoint_by_name(source: nn.Module, target: nn.Module, path: Path) -> None:
    saved = tfckpt.Saver({"net": source}).save(path)
    assert saved is not None
    tfckpt.Checkpoint(net=target).read(saved).assert_consumed()


def through_model(source: nn.Module, target: nn.Module, path: Path) -> None:
    tfckpt.save_model(source, path)
    tfckpt.load_model(target, path)


def through_assigned_model(source: nn.Module, target: nn.Module, path: Path) -> None:
    tfckpt.save_model(source, path)
    tfckpt.load_model(target, path, assign=True)


Way = Callable[[nn.Module, nn.Module, Path], None]
WAYS: dict[str, Way] = {
    name.removeprefix("through_"): way for name, way in list(globals().items()) if name.startswith("through_")
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


class Cached(nn.Module):
    """A layer that keeps the transposed weight, and refreshes it after loading."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.refreshed = 0
        self.register_load_state_dict_post_hook(Cached._refresh)  # type: ignore[no-untyped-call]
        self.cache = self.weight.detach().t().clone()

    @staticmethod
    def _refresh(module: nn.Module, keys: object) -> None:
        assert isinstance(module, Cached)
        module.cache = module.weight.detach().t().clone()
        module.refreshed += 1


class Packed(nn.Module):
    """A layer whose own loading computes a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("squared", self.scale.detach() ** 2, persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.squared = self.scale.detach() ** 2


class Growing(nn.Module):
    """A layer whose buffer gets the size of what is loaded, such as a memory of samples."""

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.register_buffer("memory", torch.randn(size, 2))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.memory = torch.empty_like(state_dict[prefix + "memory"])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Whole(nn.Linear):
    """A layer with a load_state_dict of its own."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.loads = 0

    def load_state_dict(self, *given: Any, **named: Any) -> Any:
        self.loads += 1
        return super().load_state_dict(*given, **named)


class Net(nn.Module):
    """Plain layers and the others."""

    def __init__(self, memory: int = 0) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.cached, self.packed, self.growing, self.whole = Cached(), Packed(), Growing(memory), Whole()
        self.after = nn.Linear(2, 2)


@ways
def test_hooks_and_methods_run(tmp_path: Path, way: Way) -> None:
    """Caches are refreshed, buffers resized, methods called; plain layers beside them are restored, too."""
    source, target = Net(3), Net()
    way(source, target, tmp_path / "m")
    assert_same(source, target)
    assert torch.equal(target.cached.cache, source.cached.weight.t()) and target.cached.refreshed == 1
    assert torch.equal(target.packed.squared, source.packed.scale.detach() ** 2)
    assert target.whole.loads == 1


@ways
def test_parameters_stay_the_same_objects(tmp_path: Path, way: Way) -> None:
    """The optimizer has references to them."""
    target = Net()
    parameters = list(target.parameters())
    way(Net(3), target, tmp_path / "m")
    if way is not through_assigned_model:
        assert [id(each) for each in target.parameters()] == [id(each) for each in parameters]


class Failing(nn.Linear):
    """A layer whose hook raises."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_load_state_dict_post_hook(self._fail)  # type: ignore[no-untyped-call]

    @staticmethod
    def _fail(module: nn.Module, keys: object) -> None:
        raise ZeroDivisionError("no such cache")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", [way for name, way in WAYS.items() if name != "sequential_saver"])
def test_a_hook_that_raises(tmp_path: Path, way: Way) -> None:
    """Nothing has changed: neither plain layers nor those whose hooks ran before; the error says so."""
    source, target = nn.ModuleDict({"a": Net(3), "z": nn.Linear(2, 2)}), nn.ModuleDict({"a": Net(), "z": Failing()})
    before = {name: value.clone() for name, value in target.state_dict().items()}
    net = target["a"]
    assert isinstance(net, Net)
    cache, tensors = net.cached.cache, [id(each) for each in target.state_dict(keep_vars=True).values()]
    with pytest.raises(ZeroDivisionError, match="no such cache") as caught:
        way(source, target, tmp_path / "m")
    after = target.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()) and len(after) == len(before)
    assert [id(each) for each in target.state_dict(keep_vars=True).values()] == tensors
    assert net.cached.cache is cache and net.cached.refreshed == 0
    notes = "\n".join(caught.value.__notes__)
    assert "Failing" in notes and "load_state_dict" in notes and "restored" in notes


def test_a_hook_that_raises_in_a_sequential_restore(tmp_path: Path) -> None:
    """What was restored before it stays, and is listed."""
    source, target = nn.ModuleDict({"a": nn.Linear(2, 2), "z": nn.Linear(2, 2)}), nn.ModuleDict({"a": Cached()})
    target = nn.ModuleDict({"a": nn.Linear(2, 2), "z": Failing()})
    with pytest.raises(ZeroDivisionError) as caught:
        through_sequential_saver(source, target, tmp_path / "m")
    assert "Restored before this failed: 2 saveables" in "\n".join(caught.value.__notes__)


def quantized() -> nn.Module:
    """Return a module that is prepared for training with quantization, as it is built."""
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).train()
    net.qconfig = get_default_qat_qconfig("fbgemm")  # type: ignore[no-untyped-call]
    return cast(nn.Module, prepare_qat(net))  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@ways
def test_training_with_quantization_is_resumed(tmp_path: Path, way: Way) -> None:
    """Observers get the sizes of the stored ranges; the next step is the same."""
    source, target = quantized(), quantized()
    source(torch.randn(4, 1, 2, 2))
    way(source, target, tmp_path / "m")
    assert_same(source, target)
    x = torch.randn(4, 1, 2, 2)
    assert torch.equal(source(x), target(x))
    assert_same(source, target)


class Symmetric(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).t()


def lazy_batch_norm() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())


def tied() -> nn.Module:
    net = nn.Sequential(Cached(), nn.Linear(3, 2, bias=False))
    net[1].weight = cast(Cached, net[0]).weight
    return net


MODULES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)),
    "instance norm": lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(2, 3)),
    "old weight norm": lambda: weight_norm(nn.Linear(2, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(2, 3)),
    "old spectral norm": lambda: spectral_norm(nn.Linear(2, 3)),
    "parametrized": lambda: parametrize.register_parametrization(nn.Linear(2, 2), "weight", Symmetric()),
    "lstm": lambda: nn.LSTM(2, 3),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "tied": tied,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@ways
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_modules_of_torch(tmp_path: Path, way: Way, make: Callable[[], nn.Module]) -> None:
    """All values are restored, by whichever path, as torch's load_state_dict restores them."""
    source, target, expected = make(), make(), make()
    with torch.no_grad():
        for tensor in source.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    expected.load_state_dict(source.state_dict())
    way(source, target, tmp_path / "m")
    assert_same(expected, target)
    assert_same(source, target)


@ways
@pytest.mark.parametrize("uninitialized", [True, False])
def test_lazy_modules(tmp_path: Path, way: Way, uninitialized: bool) -> None:
    """They get the stored shapes."""
    source, target = lazy_batch_norm(), lazy_batch_norm()
    source(torch.randn(4, 2))
    if not uninitialized:
        target(torch.randn(4, 2))
    way(source, target, tmp_path / "m")
    assert_same(source, target)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_which_modules_load_a_state_dict() -> None:
    """Those of torch that only need to be filled are filled directly."""
    direct = ["batch norm", "instance norm", "parametrized", "spectral norm", "lstm", "attention", "old weight norm"]
    for name, make in MODULES.items():
        assert any(map(loads_state_dict, make().modules())) == (name not in direct), name
    assert not any(map(loads_state_dict, lazy_batch_norm().modules()))


class Hooked(nn.Module):
    """A module with a hook that does nothing, so that it is restored by load_state_dict."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_load_state_dict_post_hook(lambda module, keys: None)  # type: ignore[no-untyped-call]


@st.composite
def nets(draw: st.DrawFn) -> Callable[[], nn.Module]:
    """Return a function that builds a net of some layers; each of its calls gives other values."""
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2, bias=False), lambda: nn.BatchNorm1d(2),
        lambda: nn.Embedding(3, 2), lambda: nn.GRU(2, 2), lambda: nn.Identity(), lambda: nn.PReLU(),
        lambda: nn.Linear(2, 2, dtype=torch.bfloat16), lambda: nn.LazyLinear(2), lambda: nn.Conv1d(2, 2, 1),
    ]  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5))
    tie = draw(st.booleans())

    def make() -> nn.Module:
        net = nn.Sequential(*[kind() for kind in chosen])
        linears = [each for each in net if type(each) is nn.Linear and each.weight.dtype == torch.float32]
        for each in linears[1:] if tie else ():
            each.weight = linears[0].weight
        return net

    return make


@given(make=nets(), way=st.sampled_from([*WAYS.values()]))
def test_the_direct_path_equals_the_state_dict_path(
    tmp_path_factory: pytest.TempPathFactory, make: Callable[[], nn.Module], way: Way
) -> None:
    """A net gets the same values with and without a hook around it."""
    source, direct, hooked = make(), make(), make()
    for layer in source:  # type: ignore[attr-defined]
        if isinstance(layer, nn.LazyLinear):
            layer(torch.zeros(1, 3))
    if not source.state_dict():
        return
    path = tmp_path_factory.mktemp("m")
    way(nn.ModuleDict({"net": source}), nn.ModuleDict({"net": direct}), path / "a")
    way(nn.ModuleDict({"net": source}), Hooked(hooked), path / "b")
    assert_same(direct, hooked)
    assert_same(source, hooked)


class Versioned(nn.Module):
    """Version 2 stores the logarithm of what version 1 stored."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(2))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        version = local_metadata.get("version")
        if version is None or version < 2:
            state_dict[prefix + "scale"] = state_dict.pop(prefix + "old_scale", state_dict.get(prefix + "scale")).log()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@ways
def test_versions_are_passed(tmp_path: Path, way: Way) -> None:
    """Values of the present version are not converted."""
    source, target = nn.Sequential(Versioned()), nn.Sequential(Versioned())
    way(source, target, tmp_path / "m")
    assert_same(source, target)


def test_versions_are_stored(tmp_path: Path) -> None:
    """Where a class has one, and loads; a reader of an older file passes its version."""
    path = str(tfckpt.Saver({"n": nn.DataParallel(nn.Sequential(Versioned()))}).save(tmp_path / "m"))
    assert tfckpt.load_variable(path, "n/.versions") == b'{"0": 2}'
    one: dict[str, Any] = {"n/0.scale": torch.ones(2), "n/.versions": '{"0": 1}'}
    target = nn.Sequential(Versioned())
    tfckpt.Saver({"n": target}).restore(tfckpt.save_file(one, tmp_path / "old"))
    assert torch.equal(target.state_dict()["0.scale"], torch.zeros(2))


def test_names_of_an_old_version_are_found_without_a_stored_version(tmp_path: Path) -> None:
    """The file was written by torch before version 2: the names do not fit, so no version is passed."""
    target = nn.Sequential(Versioned())
    path = tfckpt.save_file({"0.old_scale": torch.ones(2)}, tmp_path / "m")
    report = tfckpt.Saver(target).restore(path)
    assert torch.equal(target.state_dict()["0.scale"], torch.zeros(2))
    assert tuple(report) == ([], [])


@pytest.mark.parametrize("text", ["{", "[]", '{"0": "x"}'])
def test_damaged_versions(tmp_path: Path, text: str) -> None:
    """They are an error."""
    path = tfckpt.save_file({"n/0.scale": torch.ones(2), "n/.versions": text}, tmp_path / "m")
    with pytest.raises(tfckpt.DataLossError, match=re.escape('"n/.versions" is not')):
        tfckpt.Saver({"n": nn.Sequential(Versioned())}).restore(path)


class Recoding(nn.Linear):
    """A layer with hooks that change what is saved, and change it back when it is loaded."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_state_dict_post_hook(self._save)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(self._load)  # type: ignore[no-untyped-call]

    @staticmethod
    def _save(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        raise NotImplementedError

    @staticmethod
    def _load(module: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
        raise NotImplementedError


class Renaming(Recoding):
    """A layer whose hooks rename an entry of its state_dict, and rename it back."""

    @staticmethod
    def _save(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        state[prefix + "kernel"] = state.pop(prefix + "weight")

    @staticmethod
    def _load(module: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
        state[prefix + "weight"] = state.pop(prefix + "kernel")


class Halving(Recoding):
    """A layer that stores half of its weight, and doubles what it loads."""

    @staticmethod
    def _save(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        state[prefix + "weight"] = state[prefix + "weight"].detach() / 2
        state[prefix + "note"] = "halved"

    @staticmethod
    def _load(module: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
        assert state.pop(prefix + "note") == "halved"
        state[prefix + "weight"] = state[prefix + "weight"] * 2


@ways
def test_hooks_that_rename(tmp_path: Path, way: Way) -> None:
    """The hook gets the name that it wrote."""
    source, target = nn.Sequential(Renaming(), nn.Linear(2, 2)), nn.Sequential(Renaming(), nn.Linear(2, 2))
    way(source, target, tmp_path / "m")
    assert_same(source, target)


@pytest.mark.parametrize("way", [through_saver, through_bare_saver, through_sequential_saver])
def test_hooks_that_change_values(tmp_path: Path, way: Way) -> None:
    """What a hook stores is what it gets, even if that is not a tensor of the module."""
    source, target = nn.Sequential(Halving()), nn.Sequential(Halving())
    way(source, target, tmp_path / "m")
    assert torch.equal(source.state_dict()["0.weight"], target.state_dict()["0.weight"])


def test_checkpoints_refuse_hooks_that_change_values(tmp_path: Path) -> None:
    """The object graph contains the tensors themselves."""
    with pytest.raises(tfckpt.UnimplementedError, match=r"note.*cannot be restored in place"):
        tfckpt.Checkpoint(net=nn.Sequential(Halving())).write(tmp_path / "m")


def test_missing_and_unexpected_entries(tmp_path: Path) -> None:
    """Of modules that are loaded by load_state_dict: as for other modules."""
    path = tfckpt.save_file({"n/cached.weigth": torch.ones(2, 3), "n/cached.more": torch.ones(1)}, tmp_path / "m")
    target = nn.ModuleDict({"cached": Cached()})
    before = target["cached"].weight.detach().clone()  # type: ignore[operator]
    with pytest.raises(tfckpt.NotFoundError, match=r"Key n/cached\.weight not found in checkpoint"):
        tfckpt.Saver({"n": target}).restore(path)
    assert cast(Cached, target["cached"]).refreshed == 0
    report = tfckpt.Saver({"n": target}).restore(path, strict=False)
    assert torch.equal(cast(Cached, target["cached"]).weight, before)
    assert report.missing == ["n/cached.weight"] and report.unexpected == ["n/cached.more", "n/cached.weigth"]


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_that_do_not_fit(tmp_path: Path, strict: bool) -> None:
    """torch's text, as our error; or in the report."""
    path = tfckpt.save_file({"n/weight": torch.ones(5, 5)}, tmp_path / "m")
    target = Cached()
    before = target.weight.detach().clone()
    if strict:
        with pytest.raises(tfckpt.InvalidArgumentError, match="size mismatch for weight"):
            tfckpt.Saver({"n": target}).restore(path)
    else:
        report = tfckpt.Saver({"n": target}).restore(path, strict=False)
        assert "size mismatch for weight" in report.remarks[0]
    assert torch.equal(target.weight, before)


def test_converted_values_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torch's load_state_dict converts types."""
    path = tfckpt.save_file({"n/weight": torch.ones(2, 3, dtype=torch.float64)}, tmp_path / "m")
    with caplog.at_level(logging.WARNING):
        report = tfckpt.Saver({"n": Cached()}).restore(path)
    assert [str(each) for each in report.converted] == ['"n/weight" from "n/weight", DT_DOUBLE to torch.float32']
    assert "DT_DOUBLE to torch.float32" in caplog.text


class Extra(Cached):
    """Extra state in a module with a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: dict[str, Any] = {}

    def get_extra_state(self) -> dict[str, Any]:
        return self.extra

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.extra = state


@pytest.mark.parametrize(
    "way", [way for name, way in WAYS.items() if "model" not in name], ids=[n for n in WAYS if "model" not in n]
)
def test_extra_state(tmp_path: Path, way: Way) -> None:
    """It is passed in the state_dict, with its tensors."""
    source, target = nn.Sequential(Extra()), nn.Sequential(Extra())
    cast(Extra, source[0]).extra = {"step": 3, "mean": torch.ones(2)}
    way(source, target, tmp_path / "m")
    extra = cast(Extra, target[0])
    assert extra.extra["step"] == 3 and torch.equal(extra.extra["mean"], torch.ones(2)) and extra.refreshed == 1


def test_a_buffer_that_the_module_creates_when_it_loads(tmp_path: Path) -> None:
    """It is passed although the module does not have it now; the object graph reports it as restored."""

    class Creating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("seen", None)

        def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
            if prefix + "seen" in state_dict:
                self.register_buffer("seen", torch.zeros_like(state_dict[prefix + "seen"]))
            super()._load_from_state_dict(state_dict, prefix, *rest)

    for way in WAYS.values():
        source, target = nn.Sequential(Creating()), nn.Sequential(Creating())
        source[0].seen = torch.full((3,), 2.0)
        if "model" in way.__name__:
            continue  # load_model reports it: it does not load what the module does not have
        way(source, target, tmp_path / way.__name__)
        assert torch.equal(cast(torch.Tensor, target[0].seen), torch.full((3,), 2.0)), way
