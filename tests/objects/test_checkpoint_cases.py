"""TensorFlow's own tests of tf.train.Checkpoint, case by case."""

import copy
import logging
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import expected_of
from tensorflow_process import RawTensor
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.options import CheckpointOptions
from torch_tfckpt.values import Value

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def scalar(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value))


def module(**parts: nn.Module | torch.Tensor) -> Any:
    """Return a module with these attributes; tensors become parameters."""
    made = nn.Module()
    for name, part in parts.items():
        setattr(made, name, nn.Parameter(part) if type(part) is torch.Tensor else part)
    return made


class Tracked:
    """Object with children of any names, and without values of its own."""

    def __init__(self, **children: object) -> None:
        self.children = dict(children)

    def _trackable_children(self) -> dict[str, object]:
        return self.children


def keys_of(path: str) -> list[str]:
    return [key for key in tfckpt.load_file(path) if key != "_CHECKPOINTABLE_OBJECT_GRAPH"]


def write(prefix: Path, root: object = None, **objects: object) -> str:
    return Checkpoint(root, **objects).write(prefix)


def test_add_variable(tmp_path: Path) -> None:
    """CASES 151: keys are local names with the attribute; a duplicate name is rejected."""
    names = ["a_variable", "bare_initializer", "other", "init"]
    path = write(tmp_path / "m", module(**{name: torch.tensor(1.0) for name in names}))
    assert keys_of(path) == sorted(f"{name}{VALUE}" for name in names)

    class Twice:
        def _trackable_children(self) -> list[tuple[str, object]]:
            return [("v", scalar(1.0)), ("v", scalar(2.0))]

    with pytest.raises(ValueError, match='"v" is already declared'):
        write(tmp_path / "twice", Twice())
    assert not list(tmp_path.glob("twice*"))


class Mirrored(tfckpt.SaveableObject):
    def __init__(self, primary: torch.Tensor, mirror: torch.Tensor, name: str) -> None:
        super().__init__(primary, [tfckpt.SaveSpec(primary, "", name)], name)
        self._both = (primary, mirror)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        for each in self._both:
            each.copy_(torch.as_tensor(restored_tensors[0]))


class OwnsMirroredVariables:
    def __init__(self) -> None:
        self.primary, self.mirror = torch.tensor(15.0), torch.tensor(15.0)

    def _gather_saveables_for_checkpoint(self) -> dict[str, object]:
        return {"VARIABLE_VALUE": lambda name="m": Mirrored(self.primary, self.mirror, name)}


@pytest.mark.parametrize("enable_async", [False, True], ids=["sync", "async"])
def test_more_complex_saveable(tmp_path: Path, enable_async: bool) -> None:
    """CASES 152: one stored value is assigned to two variables, including after an asynchronous save."""
    options = CheckpointOptions(enable_async=enable_async)
    owner = OwnsMirroredVariables()
    checkpoint = Checkpoint(v=owner)
    for value in (42.0, 44.0):
        owner.primary.fill_(value)
        path = checkpoint.save(tmp_path / "m", options)
        owner.primary.fill_(value + 1)
        owner.mirror.fill_(value + 2)
        checkpoint.restore(path).assert_consumed()
        assert (owner.primary.item(), owner.mirror.item()) == (value, value)
    assert keys_of(path) == ["save_counter" + VALUE, "v" + VALUE]


def test_status_outlives_the_checkpoint(tmp_path: Path) -> None:
    """CASES 153: the status can be used after the Checkpoint is deleted."""
    checkpoint = Checkpoint(v=scalar(0.0))
    status = checkpoint.restore(checkpoint.save(tmp_path / "m"))
    del checkpoint
    status.assert_consumed()


def test_deep_copy(tmp_path: Path) -> None:
    """CASES 154: a deep copy has its own variables."""
    original: Any = Checkpoint(dep=module(v=torch.tensor(1.0)))
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.dep.v.fill_(2.0)
    assert original.dep.v.item() == 1.0
    path = other.save(tmp_path / "m")
    original.restore(path).assert_consumed()
    assert original.dep.v.item() == 2.0


def test_options_are_accepted_everywhere(tmp_path: Path) -> None:
    """CASES 155: an io device is accepted."""
    options = CheckpointOptions(experimental_io_device="/job:localhost")
    v = torch.tensor(2.0)
    checkpoint = Checkpoint(v=v)
    saved, written = checkpoint.save(tmp_path / "m", options=options), checkpoint.write(tmp_path / "w", options=options)
    for path, put in ((saved, checkpoint.restore), (written, checkpoint.read)):
        v.fill_(0.0)
        put(path, options=options).assert_consumed()
        assert v.item() == 2.0


def test_counters_restored_on_late_assignment(tmp_path: Path) -> None:
    """CASES 156: v and a counter are restored on a late assignment; torch has no frozen graphs."""
    path = write(tmp_path / "m", v=torch.tensor(3.0), counter=torch.tensor(12))
    checkpoint: Any = Checkpoint()
    checkpoint.read(path)
    checkpoint.v = torch.tensor(0.0)
    checkpoint.counter = torch.tensor(0)
    assert (checkpoint.v.item(), checkpoint.counter.item()) == (3.0, 12)


def test_custom_numbering(tmp_path: Path) -> None:
    """CASES 157: write() uses the prefix as given."""
    step = torch.tensor(0)
    checkpoint = Checkpoint(step=step)
    for i in range(5):
        assert checkpoint.write(f"{tmp_path}/m-{int(step)}") == f"{tmp_path}/m-{2 * i}"
        step += 2
    assert sorted(path.stem for path in tmp_path.glob("*.index")) == ["m-0", "m-2", "m-4", "m-6", "m-8"]
    assert len(list(tmp_path.iterdir())) == 10


class TestPartialRestore:
    """CASES 158: a stored value for which there is no object."""

    def test_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """CASES 158: the warning is logged when the objects are deleted."""
        path = write(tmp_path / "m", v1=torch.tensor(2.0), v2=torch.tensor(3.0))
        v2 = torch.tensor(0.0)
        checkpoint = Checkpoint(v1=Tracked(), v2=v2)
        gone = weakref.ref(checkpoint)
        with caplog.at_level(logging.WARNING, "torch_tfckpt"):
            checkpoint.read(path)
            assert v2.item() == 3.0
            assert not caplog.records
            del checkpoint
        assert gone() is None
        assert "(root).v1" in caplog.text
        assert "(root).v2" not in caplog.text
        assert "expect_partial()" in caplog.text

    def test_exception(self, tmp_path: Path) -> None:
        """CASES 158: the error of assert_consumed lists the unused attributes by object."""
        path = write(tmp_path / "m", v1=torch.tensor(2.0), v2=torch.tensor(3.0))
        status = Checkpoint(v1=Tracked(), v2=torch.tensor(0.0)).read(path)
        with pytest.raises(AssertionError, match=r"(?s)Unused attributes in these objects.*\(root\)\.v1"):
            status.assert_consumed()
        status.expect_partial()

    def test_silence(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """CASES 158: expect_partial() silences the warning."""
        path = write(tmp_path / "m", v1=torch.tensor(2.0), v2=torch.tensor(3.0))
        with caplog.at_level(logging.WARNING, "torch_tfckpt"):
            status = Checkpoint(v1=Tracked(), v2=torch.tensor(0.0)).read(path)
            assert status.expect_partial() is status
            del status
        assert not caplog.records


@pytest.mark.parametrize(
    ("name", "key"),
    [("a/b/c", "a.Sb.Sc"), ("b", "b"), ("c/", "c.S"), ("d/.S", "d.S..S"), ("d/.ATTRIBUTES/f", "d.S..ATTRIBUTES.Sf")],
)
def test_name_escaping(tmp_path: Path, name: str, key: str) -> None:
    """CASES 159: names are escaped, and the values are restored."""
    v = torch.tensor(1.0)
    path = write(tmp_path / "m", **{name: v})
    assert keys_of(path) == [key + VALUE]
    v.zero_()
    Checkpoint(**{name: v}).read(path).assert_consumed()
    assert v.item() == 1.0


def test_paths(tmp_path: Path) -> None:
    """CASES 160: a path of names; a child with the name of the attribute suffix."""
    assert keys_of(write(tmp_path / "m", module(leaf=module(v=torch.tensor(0.0))))) == ["leaf/v" + VALUE]
    odd = Tracked(**{".ATTRIBUTES": module(a=torch.tensor(0.0))})
    assert keys_of(write(tmp_path / "m", odd)) == ["..ATTRIBUTES/a" + VALUE]
    Checkpoint(odd).read(tmp_path / "m").assert_consumed()


class LateDependencies(nn.Module):
    def add_dep(self) -> None:
        self.dep = module(var=torch.tensor(0.0))


def test_late_dependency_tracking(tmp_path: Path) -> None:
    """CASES 161: an object that is added later is restored then."""
    path = write(tmp_path / "m", module(dep=module(var=torch.tensor(123.0))))
    late: Any = LateDependencies()
    status = Checkpoint(late).read(path)
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"Unresolved object in checkpoint.*\(root\)\.dep\.var"):
        status.assert_consumed()
    late.add_dep()
    status.assert_consumed()
    status.assert_existing_objects_matched()
    assert late.dep.var.item() == 123.0


def test_dependency_after_variable(tmp_path: Path) -> None:
    """CASES 162: an object that had its variable before it was attached is restored."""
    path = write(tmp_path / "m", module(dep=module(var=torch.tensor(-14.0))))
    late: Any = nn.Module()
    dep = module(var=torch.tensor(0.0))
    status = Checkpoint(late).read(path)
    late.dep = dep
    status.assert_consumed()
    assert dep.var.item() == -14.0


@pytest.mark.parametrize("as_module", [True, False], ids=["module", "checkpoint"])
def test_restore_on_assign(tmp_path: Path, as_module: bool) -> None:
    """CASES 162: values from before the attachment are overwritten, later ones are not."""
    path = write(tmp_path / "m", var1=torch.tensor(4.0), var2=torch.tensor(8.0))
    var1, var2 = scalar(-2.0), scalar(0.0)
    second = nn.Module()
    checkpoint = Checkpoint(second) if as_module else Checkpoint()
    owner: Any = second if as_module else checkpoint
    owner.var2 = var2
    status = checkpoint.read(path)
    assert var2.item() == 8.0
    owner.var1 = var1
    assert owner.var1 is var1
    assert var1.item() == 4.0
    with torch.no_grad():
        var1.fill_(-2.0)
    owner.var1 = var1
    assert var1.item() == -2.0
    status.assert_consumed()


@pytest.mark.parametrize("attach_reversed", [False, True])
@pytest.mark.parametrize("restore_reversed", [False, True])
def test_overlapping_restores(tmp_path: Path, attach_reversed: bool, restore_reversed: bool) -> None:
    """CASES 163: of two restores that wait for one variable, the later call wins in any order."""
    paths = [write(tmp_path / f"{value}", module(dep=module(var=torch.tensor(value)))) for value in (12.0, 13.0)]
    roots, dep = [module(), module()], module()
    for root in reversed(roots) if attach_reversed else roots:
        root.dep = dep
    numbers = [1, 0] if restore_reversed else [0, 1]
    statuses = [Checkpoint(roots[number]).read(paths[number]) for number in numbers]
    dep.var = scalar(0.0)
    assert dep.var.item() == (12.0 if restore_reversed else 13.0)
    statuses[1].assert_consumed()
    statuses[0].expect_partial()


def test_overlapping_restores_attached_later(tmp_path: Path) -> None:
    """CASES 163: the same if the object is attached after both restores, to the older one last."""
    paths = [write(tmp_path / f"{value}", module(dep=module(var=torch.tensor(value)))) for value in (12.0, 13.0)]
    roots, dep = [nn.Module(), nn.Module()], module(var=torch.tensor(0.0))
    for root, path in zip(roots, paths, strict=True):
        Checkpoint(root).read(path).expect_partial()
    roots[1].dep = dep
    assert dep.var.item() == 13.0
    roots[0].dep = dep
    assert dep.var.item() == 13.0


def test_ambiguous_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CASES 164: one saved object cannot be restored as two."""
    dep = module(v=torch.tensor(0.0))
    path = write(tmp_path / "m", module(dep_one=dep, dep_two=dep))
    root = module(dep_one=nn.Module(), dep_two=nn.Module())
    status = Checkpoint(root).read(path)
    root.dep_one.v, root.dep_two.v = scalar(1.0), scalar(2.0)
    with pytest.raises(AssertionError):
        status.assert_consumed()
    with pytest.raises(AssertionError):
        status.assert_existing_objects_matched()
    assert "Inconsistent references" in caplog.text
    status.expect_partial()


def test_objects_combined(tmp_path: Path) -> None:
    """CASES 164: two saved objects can be restored as one."""
    path = write(
        tmp_path / "m", module(dep_one=module(var1=torch.tensor(32.0)), dep_two=module(var2=torch.tensor(64.0)))
    )
    both = module(var1=torch.tensor(0.0), var2=torch.tensor(0.0))
    root = module(dep_one=both, dep_two=both)
    status = Checkpoint(root).read(path)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    assert (both.var1.item(), both.var2.item()) == (32.0, 64.0)


def test_empty_containers_are_ignored(tmp_path: Path) -> None:
    """CASES 165: empty lists, and lists of them, have no values."""
    path = Checkpoint(a=[]).save(tmp_path / "m")
    dep: list[object] = []
    checkpoint = Checkpoint(b=[], dep=dep)
    dep.append([])
    status = checkpoint.restore(path)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    status.assert_nontrivial_match()


@pytest.mark.parametrize("deferred", [False, True], ids=["immediate", "deferred"])
def test_dependency_loop(tmp_path: Path, deferred: bool) -> None:
    """CASES 166: two objects that refer to each other."""
    first, second = module(v=torch.tensor([3.0, 1.0, 4.0])), module(v=torch.tensor([1.0, 1.0, 2.0, 3.0]))
    first.second, second.first = second, first
    path = write(tmp_path / "m", first)
    one, two = module(), module()
    two.first = one
    if deferred:
        status = Checkpoint(one).read(path)
        with pytest.raises(AssertionError, match="Unresolved object"):
            status.assert_consumed()
        one.second = two
        one.v, two.v = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    else:
        one.second = two
        one.v, two.v = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
        status = Checkpoint(one).read(path)
    status.assert_consumed()
    assert one.v.tolist() == [3.0, 1.0, 4.0]
    assert two.v.tolist() == [1.0, 1.0, 2.0, 3.0]


def test_checkpoint_state(tmp_path: Path) -> None:
    """CASES 167: saves delete nothing."""
    checkpoint = Checkpoint(v=torch.tensor(0.0))
    for _ in range(10):
        checkpoint.save(tmp_path / "m")
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith("00001"))
    assert names == sorted(["checkpoint", *(f"m-{number}.index" for number in range(1, 11))])


def test_changing_var_list(tmp_path: Path) -> None:
    """CASES 167: each save has another variable; an older checkpoint restores the variables that it has."""
    checkpoint = Checkpoint()
    paths = []
    for number in range(10):
        setattr(checkpoint, f"var_{number}", torch.tensor(float(number)))
        paths.append(checkpoint.save(tmp_path / "m"))
    assert tfckpt.latest_checkpoint(tmp_path) == paths[-1] == str(tmp_path / "m-10")
    state = tfckpt.get_checkpoint_state(tmp_path)
    assert state is not None
    assert list(state.all_model_checkpoint_paths) == [paths[-1]]
    variables = [getattr(checkpoint, f"var_{number}") for number in range(10)]
    for variable in variables:
        variable.fill_(-1.0)
    checkpoint.restore(paths[5])
    assert [variable.item() for variable in variables] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -1.0, -1.0, -1.0, -1.0]


def test_new_plain_values_of_a_module(tmp_path: Path) -> None:
    """CASES 168: a dict or list that is an attribute of a module is not saved or restored."""
    path = write(tmp_path / "m", model=module(v=torch.tensor(1.0)))
    model = module(v=torch.tensor(0.0))
    model.dict, model.list = {"a": 1}, {"b": 1}
    Checkpoint(model=model).read(path).assert_existing_objects_matched()
    assert model.v.item() == 1.0


def test_directories_are_created(tmp_path: Path) -> None:
    """CASES 169: write() and save() create missing directories, and so does the function that writes files.

    torch has no tf.function.
    """
    checkpoint = Checkpoint(v=torch.tensor(1.0))
    assert Path(f"{checkpoint.write(tmp_path / 'a' / 'b' / 'm')}.index").exists()
    assert Path(f"{checkpoint.save(tmp_path / 'c' / 'd' / 'm')}.index").exists()
    assert tfckpt.latest_checkpoint(tmp_path / "c" / "d") == str(tmp_path / "c" / "d" / "m-1")
    assert Path(f"{tfckpt.save_file({'v': torch.tensor(1.0)}, tmp_path / 'e' / 'f' / 'm')}.index").exists()


def test_data_structures(tmp_path: Path) -> None:
    """CASES 170: lists and dicts of variables are restored."""
    v = [torch.tensor(float(number)) for number in range(8)]
    path = write(tmp_path / "m", a=v[:2], b={"a": v[2], "b": v[3]})
    assert keys_of(path) == [f"{name}{VALUE}" for name in ("a/0", "a/1", "b/a", "b/b")]
    Checkpoint(a=v[4:6], b={"a": v[6], "b": v[7]}).read(path).assert_consumed()
    assert [each.item() for each in v[4:]] == [0.0, 1.0, 2.0, 3.0]


def test_root_object(tmp_path: Path) -> None:
    """CASES 171: a root is node 0 itself, and attributes that it gets later are restored."""
    root = module(v=torch.tensor(5.0))
    checkpoint = Checkpoint(root)
    path = checkpoint.save(tmp_path / "m")
    assert keys_of(path) == ["save_counter" + VALUE, "v" + VALUE]
    with torch.no_grad():
        root.v.fill_(0.0)
    checkpoint.restore(path).assert_consumed()
    assert root.v.item() == 5.0
    empty: Any = nn.Module()
    status = Checkpoint(empty).restore(path)
    empty.v = scalar(1.0)
    status.assert_consumed()
    assert empty.v.item() == 5.0


def test_root_and_kwargs(tmp_path: Path) -> None:
    """CASES 171: names belong to one object, so root and keywords can be exchanged when reading."""
    with pytest.raises(ValueError, match=r"root\.v already exists"):
        Checkpoint(module(v=torch.tensor(1.0)), v=scalar(2.0))
    same = scalar(3.0)
    Checkpoint(module(v=same), v=same)
    path = Checkpoint(module(v=torch.tensor(1.0)), w=torch.tensor(2.0)).save(tmp_path / "m")
    v, w = scalar(0.0), scalar(0.0)
    for checkpoint in (
        Checkpoint(module(v=v), w=w),
        Checkpoint(module(w=w), v=v),
        Checkpoint(v=v, w=w),
    ):
        with torch.no_grad():
            v.zero_(), w.zero_()
        checkpoint.restore(path).assert_consumed()
        assert (v.item(), w.item(), int(checkpoint.save_counter)) == (1.0, 2.0, 1)


def test_missing_path(tmp_path: Path) -> None:
    """CASES 172: the error has the path and suggests the missing number."""
    checkpoint = Checkpoint(v=torch.tensor(1.0))
    path = str(tmp_path / "nothing")
    with pytest.raises(tfckpt.NotFoundError, match="Error when restoring from checkpoint or SavedModel at") as caught:
        checkpoint.restore(path)
    assert path in str(caught.value)
    with pytest.raises(tfckpt.NotFoundError) as caught:
        checkpoint.read(path)
    assert "Error when restoring" not in str(caught.value)


def test_a_saved_model_is_read_as_its_variables(golden: Path) -> None:
    """CASES 172: the directory of a SavedModel can be passed for the checkpoint of its variables."""
    model = module(output=module(kernel=torch.zeros(32, 10), bias=torch.zeros(10)))
    Checkpoint(model).restore(golden / "digits-module").expect_partial()
    expected = expected_of("digits-module")["tensors"]
    for name, value in model.output.named_parameters():
        assert RawTensor.of(value.detach()).sha256 == expected[f"output/{name}{VALUE}"]["sha256"]


def test_no_reference_cycles(tmp_path: Path) -> None:
    """CASES 173: an object that waits for values is freed with its last reference."""
    path = write(tmp_path / "m", a=module(v=torch.tensor(1.0)), b=torch.tensor(1.0))
    root = nn.Module()
    status = Checkpoint(root).read(path)
    status.expect_partial()
    gone = weakref.ref(root)
    del root, status
    assert gone() is None


def test_weakref_root(tmp_path: Path) -> None:
    """CASES 173: a root can be given as a weak reference."""
    root = module(v=torch.tensor(1.0))
    checkpoint = Checkpoint(weakref.ref(root))
    path = checkpoint.write(tmp_path / "m")
    with torch.no_grad():
        root.v.fill_(0.0)
    checkpoint.read(path).assert_consumed()
    assert root.v.item() == 1.0
    gone = weakref.ref(root)
    del root
    assert gone() is None
    with pytest.raises(tfckpt.CheckpointError):
        checkpoint.write(tmp_path / "again")


def test_only_objects_with_values_wait(tmp_path: Path) -> None:
    """CASES 174: a branch without values is not waited for."""
    branch = module(v=torch.tensor(1.0))
    path = write(tmp_path / "m", Tracked(branch_with_value=branch, branch_no_value=Tracked(), v=torch.tensor(2.0)))
    root: Any = nn.Module()
    status = Checkpoint(root).read(path)
    with pytest.raises(AssertionError, match="Unresolved object"):
        status.assert_consumed()
    root.branch_with_value, root.v = module(v=torch.tensor(0.0)), scalar(0.0)
    status.assert_consumed()
    assert (root.branch_with_value.v.item(), root.v.item()) == (1.0, 2.0)


def test_root_arg_and_kwargs_by_name(tmp_path: Path) -> None:
    """CASES 175: two layouts restore each other's variables of the same name."""
    one = {name: scalar(value) for name, value in {"v": 1.0, "w": 2.0, "y": 3.0}.items()}
    two = {name: scalar(value) for name, value in {"w": 4.0, "v": 5.0, "z": 6.0}.items()}
    first = Checkpoint(module(v=one["v"]), w=one["w"], y=one["y"])
    second = Checkpoint(module(w=two["w"]), v=two["v"], z=two["z"])
    paths = first.save(tmp_path / "one"), second.save(tmp_path / "two")
    first.restore(paths[1]).expect_partial()
    assert {name: v.item() for name, v in one.items()} == {"v": 5.0, "w": 4.0, "y": 3.0}
    second.restore(paths[0]).expect_partial()
    assert {name: v.item() for name, v in two.items()} == {"w": 2.0, "v": 1.0, "z": 6.0}


def test_incompatible_shape(tmp_path: Path) -> None:
    """CASES 176: a value of another shape is an error."""
    path = write(tmp_path / "m", v=torch.zeros(2))
    with pytest.raises(ValueError, match="incompatible tensor with shape"):
        Checkpoint(v=torch.zeros(1)).read(path)


def test_paths_may_be_path_objects(tmp_path: Path) -> None:
    """CASES 177: save, restore, write and read accept path objects."""
    v = torch.tensor(1.0)
    checkpoint = Checkpoint(v=v)
    saved, written = checkpoint.save(tmp_path / "m"), checkpoint.write(tmp_path / "w")
    assert (saved, written) == (str(tmp_path / "m-1"), str(tmp_path / "w"))
    for put, path in ((checkpoint.restore, saved), (checkpoint.read, written)):
        v.zero_()
        put(Path(path)).assert_consumed()
        assert v.item() == 1.0


def test_files_are_closed(tmp_path: Path) -> None:
    """CASES 179: a restore leaves no file open, even while values are still waiting."""
    checkpoint = Checkpoint(v=torch.tensor(1.0), w=torch.tensor(1.0))
    path = checkpoint.save(tmp_path / "m")
    late = Checkpoint(v=torch.tensor(1.0))
    late.restore(path)
    late.w = torch.tensor(0.0)
    handles = [os.readlink(handle) for handle in Path("/proc/self/fd").iterdir() if handle.exists()]
    assert not [handle for handle in handles if handle.startswith(str(tmp_path))]


class TwoValues:
    """Object that serializes itself to tensors."""

    def __init__(self, v1: float, v2: float, **children: object) -> None:
        self.v1, self.v2, self.children = torch.tensor(v1), torch.tensor(v2), children

    def _serialize_to_tensors(self) -> dict[str, torch.Tensor]:
        return {"v1": self.v1, "v2": self.v2}

    def _restore_from_tensors(self, restored: dict[str, torch.Tensor]) -> None:
        self.v1, self.v2 = restored["v1"], restored["v2"]

    def _trackable_children(self) -> dict[str, object]:
        return self.children


def test_serialize_to_tensors(tmp_path: Path) -> None:
    """CASES 180: attributes of the root have an empty path; the graph lists them by name."""
    root = TwoValues(1.0, 2.0, child=TwoValues(3.0, 4.0))
    path = write(tmp_path / "m", root)
    keys = ["/.ATTRIBUTES/v1", "/.ATTRIBUTES/v2", "child/.ATTRIBUTES/v1", "child/.ATTRIBUTES/v2"]
    assert keys_of(path) == keys
    with tfckpt.load_checkpoint(path) as reader:
        graph = reader.object_graph
    assert graph is not None
    listed = [{each.name: each.checkpoint_key for each in node.attributes} for node in graph.nodes]
    assert listed == [{"v1": keys[0], "v2": keys[1]}, {"v1": keys[2], "v2": keys[3]}]
    child = TwoValues(0.0, 0.0)
    other = TwoValues(0.0, 0.0, child=child)
    Checkpoint(other).read(path).assert_consumed()
    assert [v.item() for v in (other.v1, other.v2, child.v1, child.v2)] == [1.0, 2.0, 3.0, 4.0]


def test_object_and_saver_files(tmp_path: Path) -> None:
    """CASES 181: a Checkpoint restores its own file and a Saver's file of the same variable."""
    v = tfckpt.Variable(torch.tensor(5.0), "v")
    checkpoint = Checkpoint(v=v)
    by_object = checkpoint.save(tmp_path / "object")
    v.tensor.fill_(10.0)
    by_name = tfckpt.Saver([v]).save(tmp_path / "name")
    assert by_name is not None
    for path, value in ((by_object, 5.0), (by_name, 10.0)):
        v.tensor.fill_(0.0)
        checkpoint.restore(path).assert_existing_objects_matched()
        assert v.tensor.item() == value


@pytest.mark.parametrize("device", [None, "/job:localhost"])
def test_two_files(tmp_path: Path, device: str | None) -> None:
    """CASES 194: one variable gives an index and one data file, and restores into another variable."""
    options = CheckpointOptions(experimental_io_device=device)
    path = Checkpoint(x=torch.tensor(1.0)).write(tmp_path / "m", options)
    assert len(list(tmp_path.glob("m*"))) == 2
    other = torch.tensor(0.0)
    Checkpoint(x=other).read(path, options).assert_consumed()
    assert other.item() == 1.0


def test_sharded_by_task(tmp_path: Path) -> None:
    """CASES 195: one data file per host."""
    v = [
        tfckpt.Variable(torch.tensor(float(task)), f"v{task}", device=f"/job:worker/task:{task}/cpu:0")
        for task in range(3)
    ]
    path = Checkpoint(v=v).write(tmp_path / "m")
    assert len(list(tmp_path.glob("m*"))) == 4
    for variable in v:
        variable.tensor.fill_(-1.0)
    Checkpoint(v=v).read(path).assert_consumed()
    assert [variable.tensor.item() for variable in v] == [0.0, 1.0, 2.0]


def test_devices_of_one_host(tmp_path: Path) -> None:
    """CASES 196: devices of one host share a data file; with sharded=True each has its own."""
    v = [tfckpt.Variable(torch.tensor(float(number)), f"v{number}", device=f"/cpu:{number}") for number in range(3)]
    Checkpoint(v=v).write(tmp_path / "m")
    assert len(list(tmp_path.glob("m*"))) == 2
    path = Checkpoint(v=v).write(tmp_path / "s", CheckpointOptions(sharded=True))
    assert len(list(tmp_path.glob("s.data*"))) >= 3
    for variable in v:
        variable.tensor.fill_(-1.0)
    Checkpoint(v=v).read(path).assert_consumed()
    assert [variable.tensor.item() for variable in v] == [0.0, 1.0, 2.0]
