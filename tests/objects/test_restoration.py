"""Restoration: which object is matched with which node, and when values are assigned."""

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from object_files import children, variable, write_graph
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ROOT, ObjectGraph, RegisteredSaver, TrackableObject
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.restoration import Restoration
from torch_tfckpt.objects.trackables.registry import trackable_of

LOGGER = "torch_tfckpt"


class Parent:
    """Object with these children and no values."""

    def __init__(self, **children: object) -> None:
        self.children = children

    def _trackable_children(self) -> dict[str, object]:
        return self.children


def restored(path: str, root: object, *, skip_slot_variables: bool = False) -> Restoration:
    with CheckpointReader(path) as reader:
        assert reader.object_graph is not None
        restoration = Restoration(reader.storage, path, reader.object_graph, skip_slot_variables=skip_slot_variables)
        restoration.progress.expect_partial = True
        restoration.restore(trackable_of(root, "root"), ROOT, reader)
    return restoration


def unrestored(restoration: Restoration) -> list[str]:
    return list(restoration.progress.unrestored())


def write(prefix: Path, **objects: object) -> str:
    return Checkpoint(Parent(**objects)).write(prefix)


def test_names_are_matched_from_the_root(tmp_path: Path) -> None:
    """Objects with names on both sides are bound; the others are listed by path."""
    path = write(tmp_path / "m", a=torch.tensor(1.0), p=Parent(b=torch.tensor(2.0), c=torch.tensor(3.0)))
    a, b, other = torch.zeros(()), torch.zeros(()), torch.zeros(())
    restoration = restored(path, Parent(a=a, p=Parent(b=b, other=other)))
    assert (a.item(), b.item(), other.item()) == (1.0, 2.0, 0.0)
    assert unrestored(restoration) == ["(root).p.c"]


def test_shorter_paths_come_first(tmp_path: Path) -> None:
    """Of two objects for one node, the one nearer to the root is restored, with a warning."""
    one = torch.tensor(1.0)
    path = write(tmp_path / "m", deep=Parent(v=one), near=one)
    near, deep = torch.zeros(()), torch.zeros(())
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(
            logging.getLogger("torch_tfckpt.objects.restoration"),
            "warning",
            lambda text, *args: said.append(text % args),
        )
        restored(path, Parent(deep=Parent(v=deep), near=near))
    assert (near.item(), deep.item()) == (1.0, 0.0)
    [text] = said
    assert "Inconsistent references" in text and "(root).near" in text and path in text


@pytest.mark.parametrize(("second", "lost"), [(1.0, []), (2.0, ["(root).b"])])
def test_two_nodes_for_one_object(tmp_path: Path, second: float, lost: list[str]) -> None:
    """One object is bound to both nodes if they have one value; else the first is restored, the second reported."""
    path = write(tmp_path / "m", a=torch.tensor(1.0), b=torch.tensor(second))
    both = torch.zeros(())
    restoration = restored(path, Parent(a=both, b=both))
    assert unrestored(restoration) == lost
    assert both.item() == 1.0


def test_a_failure_changes_nothing(tmp_path: Path) -> None:
    """After a mismatch no value is assigned, no node is bound, and nothing waits."""
    path = write(tmp_path / "m", a=torch.tensor(1.0), m=nn.Linear(1, 1), z=torch.zeros(3))
    a, module = torch.zeros(()), nn.Module()
    with CheckpointReader(path) as reader:
        assert reader.object_graph is not None
        restoration = Restoration(reader.storage, path, reader.object_graph, skip_slot_variables=False)
        restoration.progress.expect_partial = True
        with pytest.raises(InvalidArgumentError, match=r"z/\.ATTRIBUTES"):
            restoration.restore(trackable_of(Parent(a=a, m=module, z=torch.zeros(2)), "root"), ROOT, reader)
    assert a.item() == 0.0
    assert restoration.progress.bound == set()
    module.weight = nn.Parameter(torch.full((1, 1), 7.0))
    assert module.weight.item() == 7.0


def test_graphs_without_has_checkpoint_values(tmp_path: Path) -> None:
    """Late children are restored although the graph of an old writer lacks the field."""
    nodes = [
        TrackableObject(children(("m", 1))),
        TrackableObject(children(("w", 2))),
        variable("m/w", "w"),
    ]
    path = write_graph(tmp_path / "m", nodes, {"w": torch.tensor(5.0)})
    with CheckpointReader(path) as reader:
        assert reader.object_graph is not None
        silent = [TrackableObject(node.children, node.attributes) for node in reader.object_graph.nodes]
    stored = {**tfckpt.load_file(path), OBJECT_GRAPH_KEY: ObjectGraph(tuple(silent)).encode()}
    path = tfckpt.save_file(stored, tmp_path / "old")
    module: Any = nn.Module()
    restored(path, Parent(m=module))
    module.w = nn.Parameter(torch.zeros(()))
    assert module.w.item() == 5.0


def test_a_checkpoint_deleted_before_late_children(tmp_path: Path) -> None:
    """The error of the assignment has the object and the checkpoint."""
    path = write(tmp_path / "m", m=Parent(v=torch.tensor(1.0)))
    module = nn.Module()
    restored(path, Parent(m=module))
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(tfckpt.NotFoundError, match=r"restoring \(root\)\.m\.v, which was added after") as caught:
        module.v = nn.Parameter(torch.zeros(()))
    assert path in str(caught.value)


def test_an_object_of_a_registered_saver(tmp_path: Path) -> None:
    """It requires code of the other program: the error has the file, the object and the saver."""
    saver = RegisteredSaver("Package.Saver", "x")
    nodes = [TrackableObject(children(("x", 1))), TrackableObject(registered_saver=saver)]
    path = write_graph(tmp_path / "m", nodes)
    with pytest.raises(InvalidArgumentError, match=r"\(root\)\.x .*Package\.Saver.*Omit that object") as caught:
        restored(path, Parent(x=torch.zeros(())))
    assert path in str(caught.value)
    restored(path, Parent())


def test_an_older_restore_does_not_overwrite_a_newer_one(tmp_path: Path) -> None:
    """A child that the newer of two waiting restores has restored keeps its values."""
    paths = [write(tmp_path / str(value), m=Parent(v=torch.tensor(value))) for value in (1.0, 2.0)]
    waiting = [nn.Module(), nn.Module()]
    wrapped = [Checkpoint(Parent(m=each)) for each in waiting]
    v = nn.Parameter(torch.zeros(()))
    for checkpoint, path in zip(wrapped, paths, strict=True):
        checkpoint.read(path).expect_partial()
    for module in reversed(waiting):
        module.v = v
    assert v.item() == 2.0


def test_an_optimizer_waits_for_its_parameters(tmp_path: Path) -> None:
    """It is restored with the last of them; if it is deleted before, nothing is logged."""
    model: Any = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = write(tmp_path / "m", model=model, optimizer=optimizer)
    layers = [nn.Linear(1, 1), nn.Linear(1, 1)]
    here: Any = nn.Sequential(layers[0])
    other = torch.optim.SGD([*layers[0].parameters(), *layers[1].parameters()], 0.25)
    restoration = restored(path, Parent(model=here, optimizer=other))
    assert len(restoration.waiting_optimizers) == 1
    assert other.param_groups[0]["lr"] == 0.25
    here.append(layers[1])
    assert len(restoration.waiting_optimizers) == 0
    assert other.param_groups[0]["lr"] == 0.5
    assert len(other.state) == 4
    assert unrestored(restoration) == []
    here = nn.Sequential(nn.Linear(1, 1))
    restoration = restored(path, Parent(model=here, optimizer=torch.optim.SGD(layers[0].parameters(), 0.1)))
    gc.collect()
    here.append(nn.Linear(1, 1))
    assert torch.equal(here[1].weight, model[1].weight)


def test_skipping_optimizers(tmp_path: Path) -> None:
    """They are bound, and their state is not changed."""
    model = nn.Linear(1, 1)
    path = write(tmp_path / "m", model=model, optimizer=torch.optim.SGD(model.parameters(), 0.5))
    other = torch.optim.SGD(model.parameters(), 0.25)
    restoration = restored(path, Parent(model=model, optimizer=other), skip_slot_variables=True)
    assert other.param_groups[0]["lr"] == 0.25
    assert unrestored(restoration) == []
    assert not restoration.waiting_optimizers


@pytest.mark.parametrize("count", [5, 100])
def test_the_final_warning_is_limited(tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int) -> None:
    """One record of limited length lists the first unrestored paths and counts the others."""
    path = write(tmp_path / "m", **{f"v{i:03}": torch.zeros(()) for i in range(count)})
    restoration = restored(path, Parent())
    restoration.progress.expect_partial = False
    with caplog.at_level(logging.WARNING, LOGGER):
        del restoration
    [record] = caplog.records
    lines = record.getMessage().splitlines()
    assert len(lines) == 1 + min(count, 21)
    assert (lines[-1] == "and 80 more") is (count == 100)


def test_objects_are_not_kept_alive(tmp_path: Path) -> None:
    """A restoration keeps no reference to restored objects."""
    path = write(tmp_path / "m", model=nn.Linear(2, 2))
    model = nn.Linear(2, 2)
    restoration = restored(path, Parent(model=model))
    assert len(restoration.tensors()) == 2
    del model
    assert restoration.tensors() == {}
