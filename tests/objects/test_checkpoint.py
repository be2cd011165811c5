"""Checkpoint: numbers, state file, objects, background saves, files of Savers, managers."""

import copy
import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saver_files import same
from storages import GatedStorage
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.options import CheckpointOptions

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def zero(*tensors: torch.Tensor) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()


class TestNumbers:
    def test_save_counts(self, tmp_path: Path) -> None:
        """Each save writes prefix-N and the state file with a relative path to it, and deletes nothing."""
        checkpoint = Checkpoint(v=torch.tensor(1.0))
        assert [checkpoint.save(tmp_path / "m") for _ in range(2)] == [str(tmp_path / "m-1"), str(tmp_path / "m-2")]
        assert 'model_checkpoint_path: "m-2"' in (tmp_path / "checkpoint").read_text()
        assert "m-1" not in (tmp_path / "checkpoint").read_text()
        assert tfckpt.latest_checkpoint(tmp_path) == str(tmp_path / "m-2")
        assert len(names_in(tmp_path)) == 5

    def test_write_does_not(self, tmp_path: Path) -> None:
        """`write` writes no number, no counter and no state file."""
        checkpoint = Checkpoint(v=torch.tensor(1.0))
        assert checkpoint.write(tmp_path / "m") == str(tmp_path / "m")
        assert names_in(tmp_path) == ["m.data-00000-of-00001", "m.index"]
        assert sorted(tfckpt.load_file(tmp_path / "m")) == [OBJECT_GRAPH_KEY, "v" + VALUE]

    def test_the_counter_is_saved_and_restored(self, tmp_path: Path) -> None:
        """An int64 scalar; it continues from the restored value, or from one that was set."""
        checkpoint = Checkpoint(v=torch.tensor(1.0))
        counter = checkpoint.save_counter
        assert (counter.dtype, counter.shape, counter.item()) == (torch.int64, (), 0)
        checkpoint.save(tmp_path / "m")
        path = checkpoint.save(tmp_path / "m")
        assert checkpoint.save_counter is counter
        assert torch.as_tensor(tfckpt.load_file(path)["save_counter" + VALUE]).item() == 2
        other = Checkpoint(v=torch.tensor(1.0))
        other.restore(path).assert_consumed()
        assert other.save(tmp_path / "m") == str(tmp_path / "m-3")
        other.save_counter.fill_(9)
        assert other.save(tmp_path / "m") == str(tmp_path / "m-10")

    def test_restore_requires_the_counter_that_write_omits(self, tmp_path: Path) -> None:
        """After restore() the asserts fail and name the counter; read() matches write()."""
        checkpoint = Checkpoint(v=torch.tensor(1.0))
        path = checkpoint.write(tmp_path / "m")
        checkpoint.read(path).assert_consumed()
        status = Checkpoint(v=torch.tensor(1.0)).restore(path)
        for check in (status.assert_consumed, status.assert_existing_objects_matched):
            with pytest.raises(AssertionError, match=r"\(root\)\.save_counter"):
                check()

    def test_a_save_that_fails_publishes_nothing(self, tmp_path: Path) -> None:
        """The state file still has the last complete checkpoint, which can be restored."""
        checkpoint = Checkpoint(v=torch.tensor(1.0))
        path = checkpoint.save(tmp_path / "m")
        checkpoint.bad = {"a": torch.tensor(0.0), 3: torch.tensor(0.0)}
        before = names_in(tmp_path)
        with pytest.raises(ValueError, match="Unable to save the object"):
            checkpoint.save(tmp_path / "m")
        assert names_in(tmp_path) == before
        assert tfckpt.latest_checkpoint(tmp_path) == path


class TestObjects:
    def test_attributes(self, tmp_path: Path) -> None:
        """Given objects can be read, replaced and deleted as attributes."""
        model, v = nn.Linear(1, 1), torch.tensor(1.0)
        checkpoint: Any = Checkpoint(model=model, v=v, epoch=3)
        assert checkpoint.model is model and checkpoint.v is v and checkpoint.epoch == 3
        del checkpoint.model
        checkpoint.w = v
        assert sorted(tfckpt.load_file(checkpoint.write(tmp_path / "m"))) == [
            OBJECT_GRAPH_KEY, "epoch/.ATTRIBUTES/py_state", "v" + VALUE,
        ]  # fmt: skip
        with pytest.raises(AttributeError):
            _ = checkpoint.model

    @pytest.mark.parametrize(
        "name", ["save", "write", "restore", "read", "sync", "save_async", "save_counter", "_tracked", "_write"]
    )
    def test_reserved_names(self, name: str) -> None:
        """A keyword with the name of a method or an internal attribute is rejected."""
        with pytest.raises(ValueError, match=name):
            Checkpoint(**{name: torch.tensor(1.0)})

    def test_keywords_next_to_a_root(self, tmp_path: Path) -> None:
        """Any keyword can be used together with a root."""
        model = nn.Linear(1, 1)
        tensors = {name: torch.tensor(float(n)) for n, name in enumerate(["a", "epoch", "root_", "z", "_x", "Z"], 1)}
        checkpoint = Checkpoint(model, **tensors)
        path = checkpoint.save(tmp_path / "m")
        assert {f"{name}{VALUE}" for name in tensors} < tfckpt.load_file(path).keys()
        zero(*tensors.values())
        checkpoint.restore(path).assert_consumed()
        assert [tensor.item() for tensor in tensors.values()] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    @pytest.mark.parametrize("kind", ["checkpoint", "tensor", "scheduler", "object"])
    def test_other_objects_as_the_root(self, tmp_path: Path, kind: str) -> None:
        """The root need not be a module."""
        v = torch.tensor(1.0)
        optimizer = torch.optim.SGD([v], 1.0)
        optimizer.step()

        class Object:
            def _trackable_children(self) -> dict[str, object]:
                return {"a": v}

        roots: dict[str, object] = {
            "checkpoint": Checkpoint(a=v), "tensor": v, "object": Object(),
            "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        }  # fmt: skip
        checkpoint = Checkpoint(roots[kind], b=torch.tensor(2.0))
        path = checkpoint.save(tmp_path / "m")
        zero(v)
        checkpoint.restore(path).assert_consumed()
        assert v.item() == (0.0 if kind == "scheduler" else 1.0)

    @pytest.mark.parametrize("kind", ["number", "text", "tuple", "dict", "list", "optimizer"])
    def test_invalid_roots(self, kind: str) -> None:
        """Plain values, containers and optimizers are rejected as the root, the first two as in TensorFlow."""
        v = nn.Parameter(torch.tensor(1.0))
        roots = {
            "number": 3, "text": "text", "tuple": (v,), "dict": {"a": v}, "list": [v],
            "optimizer": torch.optim.Adam([v]),
        }  # fmt: skip
        with pytest.raises(ValueError, match="was expecting root to be a trackable object"):
            Checkpoint(roots[kind], v=v)

    @pytest.mark.parametrize("name", ["\ud800", "a\udc80b"])
    def test_names_that_cannot_be_stored(self, tmp_path: Path, name: str) -> None:
        """Unpaired surrogates raise InvalidArgumentError, and nothing is written."""
        for objects in ({name: torch.tensor(1.0)}, {"held": {name: torch.tensor(1.0)}}):
            with pytest.raises(ValueError) as caught:
                Checkpoint(**objects).write(tmp_path / "m")
            assert isinstance(caught.value, tfckpt.InvalidArgumentError)
            assert not list(tmp_path.glob("m*"))

    @pytest.mark.parametrize("name", ["", "\0", "a\nb", "_", "__class__x", "日本"])
    def test_odd_names(self, tmp_path: Path, name: str) -> None:
        """Any other string is accepted as a name."""
        v = torch.tensor(1.0)
        for objects in ({name: v}, {"held": {name: v}}):
            checkpoint = Checkpoint(**objects)
            path = checkpoint.write(tmp_path / "m")
            zero(v)
            checkpoint.read(path).assert_consumed()
            assert v.item() == 1.0

    def test_nested_checkpoints(self, tmp_path: Path) -> None:
        """A nested Checkpoint is saved with its own counter, which is not increased."""
        inner: Any = Checkpoint(v=torch.tensor(1.0), epoch=2)
        inner.save(tmp_path / "inner")
        outer: Any = Checkpoint(inner=inner, w=torch.tensor(3.0))
        path = outer.save(tmp_path / "outer")
        assert "inner/save_counter" + VALUE in tfckpt.load_file(path)
        zero(inner.v, outer.w)
        inner.epoch = 0
        outer.restore(path).assert_consumed()
        assert (inner.v.item(), inner.epoch, outer.w.item(), int(inner.save_counter)) == (1.0, 2, 3.0, 1)

    def test_children_of_modules(self, tmp_path: Path) -> None:
        """Children are parameters, persistent buffers and modules, in the order of registration.

        None and buffers that are not persistent are left out. A root is also a child of itself, as in TensorFlow.
        """
        model = nn.Module()
        model.child = nn.Linear(1, 1, bias=False)
        model.register_buffer("b", torch.tensor(1))
        model.register_buffer("cache", torch.tensor(1), persistent=False)
        model.register_buffer("nothing", None)
        model.z, model.a = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))
        with tfckpt.load_checkpoint(Checkpoint(model).write(tmp_path / "m")) as reader:
            graph = reader.object_graph
        assert graph is not None
        assert [child.local_name for child in graph.nodes[0].children] == ["z", "a", "b", "child", "root"]

    def test_shared_objects_are_stored_once(self, tmp_path: Path) -> None:
        """They are stored under the shortest path, and restored as one object for all paths."""
        model: Any = nn.Module()
        model.deep = nn.Sequential(nn.Linear(2, 2))
        model.head = model.deep[0]
        model.tied = model.deep[0].weight
        checkpoint = Checkpoint(model=model, same=model.tied)
        path = checkpoint.write(tmp_path / "m")
        assert sorted(tfckpt.load_file(path)) == [OBJECT_GRAPH_KEY, "model/head/bias" + VALUE, "same" + VALUE]
        expected = model.head.weight.tolist()
        zero(*model.parameters())
        checkpoint.read(path).assert_consumed()
        assert model.deep[0].weight.tolist() == model.tied.tolist() == expected

    def test_tensors_of_any_kind(self, tmp_path: Path) -> None:
        """Non-contiguous views, all dtypes and tensors that require gradients are restored in place."""
        base = torch.arange(12.0).reshape(3, 4)
        tensors = {
            "transposed": base.t(), "column": torch.arange(6).reshape(2, 3)[:, 1],
            "grad": torch.ones(2, requires_grad=True), "bfloat16": torch.ones(3, dtype=torch.bfloat16),
            "bool": torch.tensor([True, False]),
            "empty": torch.empty(0, 3), "complex": torch.ones(2, dtype=torch.complex128),
            "float8": torch.ones(2).to(torch.float8_e4m3fn),
        }  # fmt: skip
        expected = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        checkpoint = Checkpoint(**tensors)
        path = checkpoint.write(tmp_path / "m")
        for tensor in tensors.values():
            tensor.detach().copy_(torch.zeros_like(tensor.detach()))
        checkpoint.read(path).assert_consumed()
        assert all(same(tensor, expected[name]) for name, tensor in tensors.items())
        assert base.tolist() == torch.arange(12.0).reshape(3, 4).tolist()
        assert tensors["grad"].requires_grad and tensors["grad"].is_leaf

    def test_full_names(self, tmp_path: Path) -> None:
        """A tensor has the full name that Saver would give it; a Variable has its own name."""
        model = nn.Sequential(nn.Linear(1, 1))
        objects: dict[str, Any] = {
            "model": model, "step": torch.tensor(3), "extra": {"ema": torch.tensor(1.0), "net": nn.Linear(1, 1)},
            "named": tfckpt.Variable(torch.tensor(1.0), "scope/named"), "lr": 0.5,
        }  # fmt: skip
        path = Checkpoint(**objects).write(tmp_path / "m")
        mapping = tfckpt.object_graph_key_mapping(path)
        assert {name: key.removesuffix(VALUE) for name, key in mapping.items() if name} == {
            "model/0.weight": "model/0/weight", "model/0.bias": "model/0/bias", "step": "step",
            "extra/ema": "extra/ema", "extra/net/weight": "extra/net/weight", "extra/net/bias": "extra/net/bias",
            "scope/named": "named",
        }  # fmt: skip
        rooted = tfckpt.object_graph_key_mapping(Checkpoint(model).write(tmp_path / "r"))
        assert rooted == {"0.weight": "0/weight" + VALUE, "0.bias": "0/bias" + VALUE}


@pytest.fixture
def gate() -> Iterator[GatedStorage]:
    """Storage that blocks writes until it is opened; opened at the end for remaining waiters."""
    gate = GatedStorage()
    yield gate
    gate.opened.set()


class TestInTheBackground:
    def test_values_at_the_time_of_the_call_are_saved(self, tmp_path: Path, gate: GatedStorage) -> None:
        """save_async returns when values may change; later changes by training are not in the checkpoint.

        This includes the strings of Python states.
        """
        model = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters(), 0.5)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        extra = {"lr": 0.5}
        checkpoint = Checkpoint(model=model, optimizer=optimizer, extra=extra, storage=gate)
        weight, moment = model.weight.tolist(), optimizer.state[model.weight]["exp_avg"].tolist()
        handle = checkpoint.save_async(tmp_path / "m")
        assert gate.reached.wait(60)
        assert handle.staged.is_set() and not handle.done()
        optimizer.step()
        extra["lr"] = 0.25
        assert not (tmp_path / "checkpoint").exists()
        gate.opened.set()
        path = handle.result()
        assert path == str(tmp_path / "m-1")
        assert tfckpt.latest_checkpoint(tmp_path) == path
        assert model.weight.tolist() != weight
        checkpoint.restore(path).assert_consumed()
        assert model.weight.tolist() == weight
        assert optimizer.state[model.weight]["exp_avg"].tolist() == moment
        assert extra == {"lr": 0.5}

    def test_one_at_a_time(self, tmp_path: Path, gate: GatedStorage) -> None:
        """enable_async returns the path before the file exists; the next call, restore and sync wait."""
        options = CheckpointOptions(enable_async=True)
        v = torch.tensor(1.0)
        checkpoint = Checkpoint(v=v, storage=gate)
        path = checkpoint.save(tmp_path / "m", options)
        assert gate.reached.wait(60)
        assert path == str(tmp_path / "m-1") and not tfckpt.checkpoint_exists(path)
        v.fill_(2.0)
        gate.opened.set()
        checkpoint.restore(path)
        assert v.item() == 1.0
        for _ in range(3):
            path = checkpoint.save(tmp_path / "m", options)
        checkpoint.restore(path).assert_consumed()
        assert path == str(tmp_path / "m-4")
        assert [number for number in range(1, 5) if tfckpt.checkpoint_exists(tmp_path / f"m-{number}")] == [1, 2, 3, 4]
        assert tfckpt.latest_checkpoint(tmp_path) == path

    def test_an_error_is_raised_by_the_next_call(self, tmp_path: Path) -> None:
        """The next call of any kind raises the error once."""
        options = CheckpointOptions(enable_async=True)
        checkpoint = Checkpoint(v=torch.tensor(1.0))

        def full(path: str) -> None:
            raise OSError(f"disk full at {path}")

        failing = CheckpointOptions(enable_async=True, experimental_write_callbacks=[full])
        calls: list[Callable[[], object]] = [
            checkpoint.sync,
            lambda: checkpoint.save(tmp_path / "n", options),
            lambda: checkpoint.restore(str(tmp_path / "w")),
            lambda: checkpoint.write(tmp_path / "n"),
        ]
        for call in calls:
            checkpoint.write(tmp_path / "w", failing)
            with pytest.raises(OSError, match="disk full"):
                call()
            checkpoint.sync()


class TestFilesOfSavers:
    def test_a_saver_reads_our_files(self, tmp_path: Path) -> None:
        """Saver over the same objects restores a Checkpoint's file by full names, with a warning."""
        layer, step = nn.Linear(2, 2), torch.tensor(7)
        model = nn.Sequential(layer)
        path = Checkpoint(model=model, step=step).save(tmp_path / "m")
        expected = layer.weight.tolist()
        zero(step, *model.parameters())
        tfckpt.Saver({"model": model, "step": step}).restore(path)
        assert (layer.weight.tolist(), step.item()) == (expected, 7)

    def test_we_read_files_of_savers(self, tmp_path: Path) -> None:
        """Restored by name; assert_consumed covers only the objects here, and the counter may be missing."""
        layer, step = nn.Linear(2, 2), torch.tensor(7)
        model = nn.Sequential(layer)
        path = tfckpt.Saver({"model": model, "step": step, "more": torch.tensor(1.0)}).save(tmp_path / "m")
        assert path is not None
        expected = layer.weight.tolist()
        zero(step, *model.parameters())
        for put in (Checkpoint(model=model, step=step).restore, Checkpoint(model=model, step=step).read):
            status = put(path)
            status.assert_consumed().assert_existing_objects_matched().assert_nontrivial_match()
            assert (layer.weight.tolist(), step.item()) == (expected, 7)
            zero(step, *model.parameters())

    def test_missing_names(self, tmp_path: Path) -> None:
        """Missing names are reported by path; the others were restored."""
        path = tfckpt.Saver({"a": torch.tensor(1.0)}).save(tmp_path / "m")
        assert path is not None
        a, b = torch.tensor(0.0), torch.tensor(5.0)
        status = Checkpoint(a=a, b=b).restore(path)
        assert (a.item(), b.item()) == (1.0, 5.0)
        with pytest.raises(AssertionError, match=r"\(root\)\.b"):
            status.assert_consumed()
        none = Checkpoint(z=torch.tensor(0.0)).restore(path)
        with pytest.raises(AssertionError):
            none.assert_nontrivial_match()

    def test_a_mismatch(self, tmp_path: Path) -> None:
        """Nothing is assigned."""
        path = tfckpt.Saver({"a": torch.tensor(1.0), "b": torch.zeros(3)}).save(tmp_path / "m")
        assert path is not None
        a = torch.tensor(0.0)
        with pytest.raises(tfckpt.InvalidArgumentError):
            Checkpoint(a=a, b=torch.zeros(2)).restore(path)
        assert a.item() == 0.0


def test_under_a_manager(tmp_path: Path) -> None:
    """The manager numbers, deletes and resumes; the counter is the checkpoint's."""
    v = torch.tensor(0.0)
    manager = tfckpt.CheckpointManager(Checkpoint(v=v), tmp_path, 2)
    assert manager.restore_or_initialize() is None
    for number in range(1, 4):
        v.fill_(float(number))
        assert manager.save() == str(tmp_path / f"ckpt-{number}")
    assert sorted(path.stem for path in tmp_path.glob("*.index")) == ["ckpt-2", "ckpt-3"]
    other = torch.tensor(0.0)
    checkpoint = Checkpoint(v=other)
    again = tfckpt.CheckpointManager(checkpoint, tmp_path, 2)
    assert again.restore_or_initialize() == str(tmp_path / "ckpt-3")
    assert (other.item(), int(checkpoint.save_counter)) == (3.0, 3)
    assert again.save() == str(tmp_path / "ckpt-4")
    assert again.checkpoint is checkpoint
    again.sync()


def test_restoring_a_prefix_without_its_number(tmp_path: Path) -> None:
    """The error suggests the number, the most likely mistake."""
    checkpoint = Checkpoint(v=torch.tensor(1.0))
    checkpoint.save(tmp_path / "m")
    with pytest.raises(tfckpt.NotFoundError, match="Error when restoring from checkpoint or SavedModel at") as caught:
        checkpoint.restore(tmp_path / "m")
    assert "-1" in str(caught.value)


def test_remote_storage(tmp_path: Path) -> None:
    """A checkpoint at a URL is written, found and restored like a local one."""
    v = torch.tensor(1.0)
    checkpoint = Checkpoint(v=v, extra={"lr": 0.5})
    path = checkpoint.save("memory://test_checkpoint/m")
    zero(v)
    checkpoint.restore(path).assert_consumed()
    assert v.item() == 1.0
    assert tfckpt.latest_checkpoint("memory://test_checkpoint") == path


def random_module(rng: random.Random, depth: int = 0) -> nn.Module:
    """Build a random tree of layers, buffers, lists and dicts of modules, with shared ones."""
    leaves: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(rng.randint(1, 4), rng.randint(1, 4), bias=rng.random() < 0.5),
        lambda: nn.Embedding(rng.randint(1, 5), 2),
        lambda: nn.BatchNorm1d(rng.randint(1, 3)),
        lambda: nn.Conv2d(1, 2, rng.randint(1, 2)),
        lambda: nn.Identity(),
    ]
    if depth == 3 or rng.random() < 0.3:
        return rng.choice(leaves)()
    children = [random_module(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if children and rng.random() < 0.3:
        children.append(rng.choice(children))
    kind = rng.choice(["sequential", "list", "dict", "module"])
    if kind == "sequential":
        return nn.Sequential(*children)
    if kind == "list":
        return nn.ModuleList(children)
    if kind == "dict":
        names = rng.sample(["a", "b/c", "größe", "two words", "0", "-"], len(children))
        return nn.ModuleDict(dict(zip(names, children, strict=True)))
    module = nn.Module()
    for number, child in enumerate(children):
        setattr(module, f"child_{number}", child)
    module.own = nn.Parameter(torch.zeros(rng.randint(0, 3), 2, dtype=rng.choice([torch.float32, torch.bfloat16])))
    module.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=rng.random() < 0.7)
    return module


@given(seed=st.integers(0, 2**32), rooted=st.booleans(), late=st.booleans())
@settings(max_examples=40)
def test_random_modules_are_restored(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rooted: bool, late: bool
) -> None:
    """A module of the same structure gets the same state bit for bit, at once or on late assignment.

    Nothing is left over on either side.
    """
    directory = tmp_path_factory.getbasetemp() / "modules"
    directory.mkdir(exist_ok=True)
    model, other = (nn.ModuleList([random_module(random.Random(seed))]) for _ in range(2))
    torch.manual_seed(seed)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) * 100)
    path = (Checkpoint(model) if rooted else Checkpoint(model=model)).write(directory / "m")
    if rooted and late:
        target = nn.ModuleList()
        status = Checkpoint(target).read(path)
        target.append(other[0])
        other = target
    elif late:
        checkpoint = Checkpoint()
        status = checkpoint.read(path)
        checkpoint.model = other
    else:
        status = (Checkpoint(other) if rooted else Checkpoint(model=other)).read(path)
    status.assert_consumed()
    expected, found = model.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    assert all(same(value, found[key]) for key, value in expected.items())


class TestReportedProblems:
    """Problems that users of the package found."""

    def test_names_of_arguments_equal_tensorflows(self, tmp_path: Path) -> None:
        """Keyword arguments have the names in TensorFlow's tutorials."""
        checkpoint = Checkpoint(v=torch.tensor(1.0))
        path = checkpoint.save(file_prefix=tmp_path / "m")
        checkpoint.restore(save_path=path).assert_consumed()
        assert checkpoint.write(file_prefix=tmp_path / "w") == str(tmp_path / "w")
        checkpoint.read(save_path=path).assert_consumed()

    @pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.device("meta")], ids=["inference", "meta"])
    def test_the_counter_is_an_ordinary_tensor(self, tmp_path: Path, mode: Callable[[], Any]) -> None:
        """It can be increased whatever mode it was created in."""
        path = Checkpoint(v=torch.tensor(1.0)).save(tmp_path / "m")
        checkpoint = Checkpoint(v=torch.tensor(0.0))
        with mode():
            assert int(checkpoint.save_counter) == 0
        checkpoint.restore(path)
        assert checkpoint.save(tmp_path / "m").endswith("m-2")

    def test_options_of_another_type(self, tmp_path: Path) -> None:
        """Options of another type are rejected before anything is counted."""
        checkpoint = Checkpoint(v=torch.tensor(1.0))
        wrong: Any = 5
        with pytest.raises(tfckpt.InvalidArgumentError, match="options must be a CheckpointOptions, got int"):
            checkpoint.save(tmp_path / "m", wrong)
        assert int(checkpoint.save_counter) == 0

    def test_a_module_that_saves_more_than_its_tensors(self, tmp_path: Path) -> None:
        """It is rejected, since its additional entries would be lost."""

        class Packed(nn.Linear):
            def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
                super()._save_to_state_dict(destination, prefix, keep_vars)
                destination[prefix + "packed"] = torch.ones(3)

        with pytest.raises(tfckpt.UnimplementedError, match=r"\(root\)\.model\.0: Packed: the entries \"packed\""):
            Checkpoint(model=nn.Sequential(Packed(2, 2))).write(tmp_path / "m")

    def test_a_number_takes_a_scalar_variable(self, tmp_path: Path) -> None:
        """A Python number is restored from a scalar variable, such as TensorFlow's tf.Variable(7) for a step."""
        path = Checkpoint(step=torch.tensor(7), rate=torch.tensor(0.5)).write(tmp_path / "m")
        checkpoint: Any = Checkpoint(step=0, rate=0.0)
        checkpoint.read(path).assert_consumed()
        assert (checkpoint.step, type(checkpoint.step), checkpoint.rate) == (7, int, 0.5)
        path = Checkpoint(step=torch.ones(2)).write(tmp_path / "vector")
        with pytest.raises(tfckpt.InvalidArgumentError, match="the object is a Python number"):
            checkpoint.read(path)

    def test_a_value_of_another_kind_is_not_matched(self, tmp_path: Path) -> None:
        """A name alone is not a match: the checkpoint has no tensor value there."""
        path = Checkpoint(v={"a": 1}).write(tmp_path / "m")
        status = Checkpoint(v=torch.tensor(1.0)).read(path)
        with pytest.raises(AssertionError, match=r"\(root\)\.v"):
            status.assert_existing_objects_matched()
        status.expect_partial()

    @pytest.mark.parametrize("placeholder", [None, [], {}], ids=repr)
    def test_placeholders_are_replaced(self, tmp_path: Path, placeholder: object) -> None:
        """If a module was saved and None or an empty container is here, a later module is restored."""
        path = Checkpoint(ema=nn.Linear(2, 1)).write(tmp_path / "m")
        checkpoint: Any = Checkpoint(ema=placeholder)
        status = checkpoint.read(path)
        checkpoint.ema = nn.Linear(2, 1)
        status.assert_consumed()

    def test_a_shallow_copy_has_its_own_objects(self, tmp_path: Path) -> None:
        """An attribute that is added to the copy is not added to the original."""
        checkpoint: Any = Checkpoint(v=torch.tensor(1.0))
        copied = copy.copy(checkpoint)
        copied.new = torch.tensor(2.0)
        checkpoint.save(tmp_path / "m")
        assert (int(checkpoint.save_counter), int(copied.save_counter)) == (1, 0)

    def test_parameters_can_be_swapped_after_a_restore(self, tmp_path: Path) -> None:
        """No weak reference to them outlives the checkpoint."""
        model = nn.Linear(2, 1)
        checkpoint = Checkpoint(model=model)
        checkpoint.restore(checkpoint.save(tmp_path / "m")).assert_consumed()
        del checkpoint
        gc.collect()
        torch.utils.swap_tensors(model.weight, nn.Parameter(torch.ones(1, 2)))  # type: ignore[no-untyped-call]
        assert model.weight.tolist() == [[1.0, 1.0]]

    def test_state_of_other_kinds(self, tmp_path: Path) -> None:
        """Masks, counts and 8-bit moments in an optimizer's state are not slots, and are restored."""
        weight = nn.Parameter(torch.ones(2))
        scale = nn.Parameter(torch.ones(()))
        optimizer = torch.optim.Adam([weight, scale], 0.1)
        for each in (weight, scale):
            optimizer.state[each] = {"step": torch.tensor(1.0), "mask": torch.ones_like(each, dtype=torch.bool)}
            optimizer.state[each] |= {"count": torch.tensor(3), "small": torch.ones_like(each, dtype=torch.uint8)}
        checkpoint = Checkpoint(weight=weight, scale=scale, optimizer=optimizer)
        path = checkpoint.write(tmp_path / "m")
        optimizer.state.clear()
        checkpoint.read(path).assert_consumed()
        assert optimizer.state[weight]["mask"].tolist() == [1, 1]  # torch casts it to the parameter's dtype
        assert int(optimizer.state[scale]["count"]) == 3

    def test_an_error_of_user_code_has_a_note(self, tmp_path: Path) -> None:
        """The note names the object and the checkpoint that were being restored."""

        class Refuses:
            def state_dict(self) -> dict[str, int]:
                return {"a": 1}

            def load_state_dict(self, state: object) -> None:
                raise RuntimeError("no")

        checkpoint = Checkpoint(mine=Refuses())
        path = checkpoint.write(tmp_path / "m")
        with pytest.raises(RuntimeError, match="no") as error:
            checkpoint.read(path)
        assert any("mine/.ATTRIBUTES/py_state" in note and path in note for note in error.value.__notes__)

    def test_a_manager_saves_in_the_background(self, tmp_path: Path) -> None:
        """State file and retention are updated when the checkpoint is complete; options are passed on."""
        checkpoint = Checkpoint(v=torch.tensor(1.0))
        manager = tfckpt.CheckpointManager(checkpoint, tmp_path / "run", max_to_keep=2)
        called: list[str] = []
        options = tfckpt.CheckpointOptions(enable_async=True, experimental_write_callbacks=[called.append])
        paths = [manager.save(options=options) for _ in range(3)]
        manager.sync()
        assert manager.checkpoints == paths[1:] == called[1:]
        assert manager.latest_checkpoint == tfckpt.latest_checkpoint(tmp_path / "run") == paths[2]
        assert not tfckpt.checkpoint_exists(str(paths[0]))
        with pytest.raises(tfckpt.InvalidArgumentError, match="options apply to a Checkpoint only"):
            tfckpt.CheckpointManager({"v": torch.ones(1)}, tmp_path / "other", 1).save(options=options)
