"""Torch's modes of the calling program change nothing: not what is written, nor what is read, nor on which device."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torch_tfckpt as tfckpt


class ObservesFunctions(TorchFunctionMode):
    """A mode that sees the functions that are called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class ObservesOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that sees the operations that run, such as that of a counter of FLOPs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def default_device_meta() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "set_default_device": default_device_meta,
    "with torch.device": lambda: torch.device("meta"),
    "set_default_dtype": default_dtype_float64,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "FakeTensorMode": FakeTensorMode,
    "TorchFunctionMode": ObservesFunctions,
    "TorchDispatchMode": ObservesOperations,
    "deterministic": deterministic,
}


class Model(nn.Module):
    """Parameters and buffers of several dtypes, small and large, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.narrow = nn.Parameter(torch.randn(4).to(torch.bfloat16))
        self.big = nn.Parameter(torch.randn(300, 301))
        self.transposed = nn.Parameter(torch.randn(7, 6).t())
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("phase", torch.randn(3, dtype=torch.complex64))


def tensors() -> dict[str, Any]:
    """A dictionary for save_file: also conjugated, expanded and strided views, and strings."""
    return {
        **{name: value.clone() for name, value in Model().state_dict().items()},
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "strided": torch.randn(8, 8)[::2, 1::3],
        "words": ["a", "bc"],
        "flag": torch.tensor([True, False]),
    }


def trained(seed: int = 5, lr: float = 0.01) -> tuple[Model, torch.optim.Adam]:
    """A model and its optimizer after one step."""
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    train(model, optimizer)
    return model, optimizer


def train(model: Model, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss = model.fc(torch.ones(5)).sum() + model.big.sum() + model.transposed.sum() + model.narrow.float().sum()
    loss.backward()
    optimizer.step()


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files, except state files, which have the time in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "checkpoint" not in path.name
    }


def shown(value: object) -> object:
    """A value that can be compared: device, dtype, shape and all bytes of a tensor."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().clone().contiguous().reshape(-1)
        content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return type(value).__name__, str(value.device), str(value.dtype), tuple(value.shape), content
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    return value


def same() -> tuple[dict[str, Any], Model, torch.optim.Adam]:
    """The same values each time."""
    torch.manual_seed(0)
    return tensors(), *trained()


def before() -> tuple[Model, torch.optim.Adam]:
    """A model and its optimizer, with state, to be restored."""
    return trained(seed=9, lr=0.02)


def fresh() -> tuple[Model, torch.optim.Adam]:
    """A model and its optimizer, which has no state yet."""
    torch.manual_seed(9)
    model = Model()
    return model, torch.optim.Adam(model.parameters(), lr=0.02)


def for_version_1(model: Model) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.dtype != torch.bfloat16}


def manager(model: Model, optimizer: torch.optim.Optimizer, directory: str) -> tfckpt.CheckpointManager:
    return tfckpt.CheckpointManager(tfckpt.Checkpoint(model=model, optimizer=optimizer), directory, max_to_keep=2)


FORMATS = ("safetensors", "npz", "pt")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of every kind."""
    folder = tmp_path_factory.mktemp("sources")
    values, model, optimizer = same()
    tfckpt.save_file(values, folder / "m")
    tfckpt.save_file(values | {"flag": torch.tensor([False, False])}, folder / "other")
    for name in ("a", "b"):
        tfckpt.save_file({name: torch.ones(2)}, folder / name)
    tfckpt.save_model(model, folder / "net")
    tfckpt.save_model(model, folder / "keras", naming="tf")
    tfckpt.Saver({"model": model, "optimizer": optimizer}).save(folder / "saver", 1)
    tfckpt.Saver(for_version_1(model), write_version=1).save(folder / "v1", 1)
    tfckpt.Checkpoint(model=model, optimizer=optimizer, epoch=3).save(folder / "objects")
    manager(model, optimizer, str(folder / "managed")).save()
    for name in FORMATS:
        tfckpt.convert(folder / "net", folder / f"source.{name}")
    return folder


def read(out: torch.Tensor) -> object:
    with tfckpt.load_checkpoint("m") as reader:
        reader.get_tensor("big", out=out)
        handle = reader.get_slice("big")
        return [out, reader.get_tensor("big"), handle[3:9, 4], reader.map_tensor("big"), reader.get_tensors(reader)]


def load_deferred(model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Restore first, then add the objects."""
    checkpoint = tfckpt.Checkpoint()
    checkpoint.restore("objects-1")
    checkpoint.model = model
    checkpoint.optimizer = optimizer


def write_objects(model: Model, optimizer: torch.optim.Optimizer) -> list[str]:
    checkpoint = tfckpt.Checkpoint(model=model, optimizer=optimizer, epoch=3)
    return [checkpoint.write("x/write"), checkpoint.save("x/save"), checkpoint.save_async("x/async").result()]


def manage(model: Model, optimizer: torch.optim.Optimizer) -> list[object]:
    run = manager(model, optimizer, "x")
    return [run.save(), run.save(), manager(model, optimizer, "x").restore_or_initialize(), run.checkpoints]


def saver(model: Model, optimizer: torch.optim.Optimizer, **options: Any) -> tfckpt.Saver:
    return tfckpt.Saver({"model": model, "optimizer": optimizer}, **options)


def converting(source: str, target: str, **options: Any) -> Callable[..., object]:
    return lambda values, model, optimizer: str(tfckpt.convert(source, target, **options))


# What to do with a trained model, its optimizer, and the tensors; everything that is returned is compared.
ACTIONS: dict[str, Callable[[dict[str, Any], Model, torch.optim.Adam], object]] = {
    "save_file": lambda values, model, optimizer: tfckpt.save_file(values, "x"),
    "load_file": lambda values, model, optimizer: tfckpt.load_file("m"),
    "load_file(mmap)": lambda values, model, optimizer: tfckpt.load_file("m", mmap=True),
    "load_file(dtype)": lambda values, model, optimizer: tfckpt.load_file("m", dtype=torch.bfloat16),
    "load_file of version 1": lambda values, model, optimizer: tfckpt.load_file("v1-1"),
    "reader": lambda values, model, optimizer: read(values["big"]),
    "load_variable": lambda values, model, optimizer: tfckpt.load_variable("net", "big"),
    "Saver.save": lambda values, model, optimizer: saver(model, optimizer).save("x", values["count"]),
    "Saver.save(sharded)": lambda values, model, optimizer: saver(model, optimizer, sharded=True).save("x", 2),
    "Saver.save of version 1": lambda values, model, optimizer: tfckpt.Saver(
        {"big": model.big, "count": model.count}, write_version=1
    ).save("x"),
    "Saver.save_async": lambda values, model, optimizer: saver(model, optimizer).save_async("x", 2).result(),
    "Checkpoint": lambda values, model, optimizer: write_objects(model, optimizer),
    "CheckpointManager": lambda values, model, optimizer: manage(model, optimizer),
    "save_model": lambda values, model, optimizer: tfckpt.save_model(model, "x"),
    "save_model(tf)": lambda values, model, optimizer: tfckpt.save_model(model, "x", naming="tf"),
    "diff": lambda values, model, optimizer: str(tfckpt.diff("m", "other")),
    "diff(atol)": lambda values, model, optimizer: str(tfckpt.diff("m", "other", atol=0.1)),
    "diff of formats": lambda values, model, optimizer: str(tfckpt.diff("net", "source.npz")),
    "verify": lambda values, model, optimizer: [tfckpt.verify("m").ok, tfckpt.verify("v1-1").ok],
    "merge": lambda values, model, optimizer: str(tfckpt.merge(["a", "b"], "x")),
    **{f"convert to {name}": converting("m", f"x.{name}") for name in FORMATS},
    **{f"convert to {name} of another dtype": converting("net", f"x.{name}", dtype="float16") for name in FORMATS},
    **{f"convert from {name}": converting(f"source.{name}", "x", to="tf") for name in FORMATS},
}
# What changes a model and its optimizer.
RESTORES: dict[str, Callable[[Model, torch.optim.Adam], object]] = {
    "Saver": lambda model, optimizer: saver(model, optimizer).restore("saver-1"),
    "Saver of version 1": lambda model, optimizer: tfckpt.Saver({"big": model.big, "count": model.count}).restore(
        "v1-1"
    ),
    "Checkpoint": lambda model, optimizer: tfckpt.Checkpoint(model=model, optimizer=optimizer).read("objects-1"),
    "Checkpoint, deferred": load_deferred,
    "CheckpointManager": lambda model, optimizer: manager(model, optimizer, "managed").restore_or_initialize(),
    "load_model": lambda model, optimizer: tfckpt.load_model(model, "net"),
    "load_model(tf)": lambda model, optimizer: tfckpt.load_model(model, "keras"),
    "load_model(assign)": lambda model, optimizer: tfckpt.load_model(model, "net", assign=True),
    "init_from_checkpoint": lambda model, optimizer: tfckpt.init_from_checkpoint(model, "net", {"fc.": "fc."}),
}


@pytest.fixture
def enter(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that makes a copy of the sources and the working directory in it."""

    def enter(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(sources, folder)
        monkeypatch.chdir(folder)
        return folder

    return enter


@pytest.mark.thinned(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("action", ACTIONS)
def test_files_and_results(action: str, mode: str, enter: Callable[[str], Path]) -> None:
    """The files and the result are those of the same call without the mode; every tensor is a real one on the CPU."""
    seen = []
    for name, active in (("without", nullcontext), ("within", MODES[mode])):
        folder, prepared = enter(name), same()
        with active():
            result = ACTIONS[action](*prepared)
        seen.append((shown(result), files(folder)))
    (plain, plain_files), (result, its_files) = seen
    assert result == plain
    assert its_files == plain_files


@pytest.mark.thinned(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [before, fresh])
@pytest.mark.parametrize("restore", RESTORES)
def test_restored_objects(restore: str, make: Any, mode: str, enter: Callable[[str], Path]) -> None:
    """A model and its optimizer get the same values, and can be trained and saved afterwards."""
    seen = []
    enter("folder")
    for active in (nullcontext, MODES[mode]):
        model, optimizer = make()
        with active():
            RESTORES[restore](model, optimizer)
        restored = [shown(model.state_dict()), shown(optimizer.state_dict())]
        optimizer = optimizer if "assign" not in restore else torch.optim.Adam(model.parameters())
        train(model, optimizer)
        saver(model, optimizer).save("again")
        seen.append([*restored, shown(model.state_dict()), shown(optimizer.state_dict())])
    assert seen[1] == seen[0]


def test_a_model_made_for_inference_is_restored_in_any_mode(enter: Callable[[str], Path]) -> None:
    """Its tensors can only be written in inference mode, which need not be active."""
    enter("folder")
    with torch.inference_mode():
        model, other = Model(), Model()
        tfckpt.load_model(model, "net")
    tfckpt.load_model(other, "net")
    expected = shown({name: tfckpt.load_variable("net", name) for name in model.state_dict()})
    plain = {name: value.detach().clone() for name, value in model.state_dict().items()}
    assert shown(plain) == expected
    assert shown({name: value.detach().clone() for name, value in other.state_dict().items()}) == expected


def test_fake_tensors_are_refused_by_name(tmp_path: Path) -> None:
    """Also while their mode is active; a fake model is not filled with real tensors."""
    tfckpt.save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / "m")
    with FakeTensorMode():
        model = nn.Linear(2, 3)
        with pytest.raises(tfckpt.InvalidArgumentError, match=r'"weight" is a .*FakeTensor'):
            tfckpt.save_file({"weight": model.weight.detach()}, tmp_path / "x")
        with pytest.raises((TypeError, tfckpt.InvalidArgumentError), match="FakeTensor"):
            tfckpt.load_model(model, tmp_path / "m")
    assert not list(tmp_path.glob("x*"))


def test_a_counter_of_a_manager_made_in_a_mode_counts_outside(tmp_path: Path) -> None:
    """The manager and the saver's checkpoint are made in inference mode, or in FakeTensorMode."""
    for name, mode in (("inference", torch.inference_mode), ("fake", FakeTensorMode)):
        weights = torch.ones(2)
        with mode():
            run = tfckpt.CheckpointManager(tfckpt.SaverCheckpoint({"w": weights}), tmp_path / name, max_to_keep=3)
            run.save()
        assert run.save() == str(tmp_path / name / "ckpt-2")
