"""`storage=`: a save and a restore use only the given storage for all files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Storage


class Elsewhere:
    """Local files below another root: code that bypasses this storage finds nothing there."""

    renames = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(LOCAL, name)
        return lambda *paths: method(*map(self._below_root, paths))

    def _below_root(self, path: str) -> str:
        """Paths of open files already start with the root."""
        return path if path.startswith(str(self.root)) else f"{self.root}/{path}"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A storage in which the directory `run` exists; the working directory is empty and must stay so."""
    (tmp_path / "root" / "run").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return cast(Storage, Elsewhere(tmp_path / "root"))


def assert_nothing_here() -> None:
    assert os.listdir() == []


def test_dictionaries(elsewhere: Storage) -> None:
    """save_file and load_file."""
    tfckpt.save_file({"a": torch.arange(3.0)}, "run/m", storage=elsewhere)
    loaded = tfckpt.load_file("run/m", storage=elsewhere)
    assert torch.equal(cast(torch.Tensor, loaded["a"]), torch.arange(3.0))
    with pytest.raises(NotFoundError):
        tfckpt.load_file("run/m")
    assert_nothing_here()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("call", ["save", "save_async"])
def test_saver(call: str, sharded: bool, elsewhere: Storage) -> None:
    """Checkpoint, meta graph, state file, pins and deletion on save; then the restore."""
    value = torch.zeros(3)
    saver = tfckpt.Saver({"a": value}, sharded=sharded, max_to_keep=2, storage=elsewhere)
    for step in range(1, 5):
        value.fill_(step)
        saved = getattr(saver, call)("run/m", step)
        assert (saved if call == "save" else saved.result()) == f"run/m-{step}"
        if step == 1:
            saver.pin("run/m-1")
    names = elsewhere.list("run")
    assert {name for name in names if name.endswith(".meta")} == {"m-1.meta", "m-3.meta", "m-4.meta"}
    assert {"checkpoint", "checkpoint.retention.json", "m-1.index", "m-4.index"} <= set(names)
    assert tfckpt.latest_checkpoint("run", storage=elsewhere) == "run/m-4"
    saver.restore("run/m-1")
    assert value.tolist() == [1, 1, 1]
    saver.recover_last_checkpoints(["run/m-3", "run/m-9"])
    assert saver.last_checkpoints == ["run/m-3"]
    assert_nothing_here()


def test_checkpoint(elsewhere: Storage) -> None:
    """Including its state file and deferred restoration."""
    tfckpt.Checkpoint(model=nn.Linear(2, 2), step=torch.tensor(7), storage=elsewhere).save("run/ckpt")
    assert tfckpt.latest_checkpoint("run", storage=elsewhere) == "run/ckpt-1"
    later = tfckpt.Checkpoint(model=nn.Linear(2, 2), storage=elsewhere)
    later.restore("run/ckpt-1")
    later.step = torch.tensor(0)
    assert int(later.step) == 7
    assert_nothing_here()


@pytest.mark.parametrize("kind", ["Checkpoint", "Saver", "variables"])
def test_manager(kind: str, elsewhere: Storage) -> None:
    """A manager's SaverCheckpoint saves to the storage that the manager searches."""
    value = torch.zeros(3)
    kinds: dict[str, Callable[[], object]] = {
        "Checkpoint": lambda: tfckpt.Checkpoint(value=value, storage=elsewhere),
        "Saver": lambda: tfckpt.Saver({"value": value}, storage=elsewhere),
        "variables": lambda: {"value": value},
    }
    manager = tfckpt.CheckpointManager(kinds[kind](), "run", max_to_keep=1, storage=elsewhere)
    for step in range(3):
        value.fill_(step)
        manager.save()
    value.zero_()
    assert manager.restore_or_initialize() == "run/ckpt-3"
    assert value.tolist() == [2, 2, 2]
    assert sorted(name for name in elsewhere.list("run") if name.endswith(".index")) == ["ckpt-3.index"]
    assert_nothing_here()


def test_load_model(elsewhere: Storage) -> None:
    """The checkpoint is looked up in the given storage."""
    model = nn.Linear(2, 2)
    tfckpt.save_file(model.state_dict(), "run/m", storage=elsewhere)
    other = nn.Linear(2, 2)
    missing, unexpected = tfckpt.load_model(other, "run/m", storage=elsewhere)
    assert not missing and not unexpected
    assert torch.equal(other.weight, model.weight)
    assert_nothing_here()


def test_an_argument_that_is_not_a_storage_is_refused() -> None:
    """`storage=` of a Checkpoint is not a child; an attribute of that name is one."""
    with pytest.raises(InvalidArgumentError, match=r"storage must be a Storage, got Linear\. .*checkpoint\.storage = "):
        tfckpt.Checkpoint(storage=nn.Linear(1, 1))
    checkpoint = tfckpt.Checkpoint()
    checkpoint.storage = nn.Linear(1, 1)
    assert "storage" in checkpoint._trackable_children()
