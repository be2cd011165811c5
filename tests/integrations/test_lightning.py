"""TFCheckpointIO: what Lightning saves with it is what Lightning loads, and other programs read the weights."""

import doctest
import importlib
import os
import pickletools
import signal
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_families import family

import torch_tfckpt as tfckpt

# Of Lightning: a slow data loader, deprecated functions of torch, directories that exist.
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore:::pytorch_lightning")


@pytest.fixture(scope="module")
def lightning() -> ModuleType:
    """The package, with its submodules."""
    return family("lightning")


@pytest.fixture(scope="module")
def plugin(lightning: ModuleType) -> Any:
    """A TFCheckpointIO."""
    return importlib.import_module("torch_tfckpt.integrations.lightning").TFCheckpointIO()


class Color(Enum):
    RED = "red"


def test_everything_of_a_dict_comes_back(plugin: Any, lightning: ModuleType, tmp_path: Path) -> None:
    """Values, types, order, versions of modules and shared memory; an AttributeDict as a dict."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    attributes = lightning.fabric.utilities.data.AttributeDict(width=3, nested=[{"t": (1, torch.ones(1))}])
    saved = {
        "epoch": 3,
        "model": {"a key of the user": torch.zeros(1)},
        "state_dict": net.state_dict(),
        "callbacks": {"Checkpoint{'a': 1}": {"/run/a.ckpt": torch.tensor(0.5), "/run/b.ckpt": np.float32(2)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]}],
        "hyper_parameters": attributes,
        "lightning": float("nan"),
        "Qualified.Name/with: odd characters": b"bytes",
        "": None,
    }
    path = tmp_path / "epoch=1-step=10.ckpt"
    plugin.save_checkpoint(saved, path)
    loaded = plugin.load_checkpoint(path)
    assert list(loaded) == list(saved)
    state = loaded["state_dict"]
    assert type(state) is OrderedDict and list(state) == list(net.state_dict())
    assert state._metadata == net.state_dict()._metadata  # type: ignore[attr-defined]
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert state["2.weight"] is state["0.weight"]
    assert loaded["callbacks"]["Checkpoint{'a': 1}"]["/run/a.ckpt"] == torch.tensor(0.5)
    assert type(loaded["callbacks"]["Checkpoint{'a': 1}"]["/run/b.ckpt"]) is np.float32
    assert loaded["optimizer_states"] == saved["optimizer_states"]
    assert type(loaded["hyper_parameters"]) is dict
    assert loaded["hyper_parameters"] == {"width": 3, "nested": [{"t": (1, torch.ones(1))}]}
    assert loaded["lightning"] != loaded["lightning"]
    assert loaded["Qualified.Name/with: odd characters"] == b"bytes" and loaded[""] is None
    assert list(saved["model"]) == list(loaded["model"])


def test_others_read_the_weights(plugin: Any, tmp_path: Path) -> None:
    """Under "model/" and the plain names: load_file, a Saver of the module, and its shared parameters."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    plugin.save_checkpoint({"state_dict": net.state_dict(), "epoch": 1}, tmp_path / "last.ckpt")
    names = [name for name, _ in tfckpt.list_variables(tmp_path / "last.ckpt") if name.startswith("model/")]
    assert names == ["model/.shared", "model/0.bias", "model/0.weight", "model/1.bias"]
    again = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    again[1].weight = again[0].weight
    tfckpt.Saver({"model": again}).restore(tmp_path / "last.ckpt" / "ckpt")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), net.parameters(), strict=True))
    apart = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tfckpt.Saver({"model": apart}).restore(tmp_path / "last.ckpt" / "ckpt")
    assert torch.equal(apart.state_dict()["1.weight"], net.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hyper_parameters", {"net": nn.Linear(1, 1)}, r'"hyper_parameters/net".*Linear.*parameters\(ignore='),
        ("hyper_parameters", {"loss": torch.relu}, '"hyper_parameters/loss"'),
        ("callbacks", {"Mine": {"lock": threading.Lock}}, '"callbacks/Mine/lock"'),
        ("state_dict", {"a._extra_state": object()}, '"model/a._extra_state"'),
    ],
    ids=["module", "function", "class", "extra state"],
)  # fmt: skip
def test_what_cannot_be_stored_is_named(plugin: Any, key: str, value: Any, message: str, tmp_path: Path) -> None:
    """A TypeError before anything is written: an earlier checkpoint stays as it is."""
    plugin.save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    with pytest.raises(TypeError, match=message):
        plugin.save_checkpoint({"epoch": 2, key: value}, tmp_path / "last.ckpt")
    with pytest.raises(TypeError, match=message):
        plugin.save_checkpoint({"epoch": 2, key: value}, tmp_path / "new.ckpt")
    assert plugin.load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 1}
    assert not (tmp_path / "new.ckpt").exists()


def test_an_enumeration_member_is_reported(plugin: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Classes of the program are not imported from a file: the plain value comes back, with a warning."""
    plugin.save_checkpoint({"hyper_parameters": {"color": Color.RED}}, tmp_path / "c.ckpt")
    assert plugin.load_checkpoint(tmp_path / "c.ckpt") == {"hyper_parameters": {"color": "red"}}
    assert "hyper_parameters" in caplog.text and "Color" in caplog.text


def test_a_path_that_cannot_be_a_directory(plugin: Any, tmp_path: Path) -> None:
    """A file of torch.save is neither replaced nor executed; the plugin removes it when Lightning asks for that."""
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 1}, path)
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"last\.ckpt is a file.*Move or delete"):
        plugin.save_checkpoint({"epoch": 2}, path)
    with pytest.raises(tfckpt.CheckpointError, match=r"last\.ckpt.*PyTorch"):
        plugin.load_checkpoint(path)
    plugin.remove_checkpoint(path)
    assert not path.exists()


def test_a_link_is_replaced_and_not_followed(plugin: Any, tmp_path: Path) -> None:
    """save_last="link" makes last.ckpt a link; a save to it must not change what it refers to."""
    plugin.save_checkpoint({"epoch": 1}, tmp_path / "epoch=1.ckpt")
    (tmp_path / "last.ckpt").symlink_to("epoch=1.ckpt")
    assert plugin.load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 1}
    plugin.save_checkpoint({"epoch": 2}, tmp_path / "last.ckpt")
    assert plugin.load_checkpoint(tmp_path / "epoch=1.ckpt") == {"epoch": 1}
    assert plugin.load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 2}
    (tmp_path / "other.ckpt").symlink_to("epoch=1.ckpt")
    plugin.remove_checkpoint(tmp_path / "other.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["epoch=1.ckpt", "last.ckpt"]


def test_removing(plugin: Any, tmp_path: Path) -> None:
    """Nothing is left; files of others stay; what does not exist is not an error."""
    plugin.save_checkpoint({"epoch": 1}, tmp_path / "a.ckpt")
    plugin.remove_checkpoint(tmp_path / "a.ckpt")
    plugin.remove_checkpoint(tmp_path / "a.ckpt")
    plugin.save_checkpoint({"epoch": 1}, tmp_path / "b.ckpt")
    (tmp_path / "b.ckpt" / "notes.txt").write_text("mine")
    plugin.remove_checkpoint(tmp_path / "b.ckpt")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["b.ckpt", "b.ckpt/notes.txt"]


def test_bad_checkpoints(plugin: Any, tmp_path: Path) -> None:
    """Nothing there, an interrupted first save, another program's checkpoint, hostile contents: the path is named."""
    with pytest.raises(tfckpt.NotFoundError, match=r"none\.ckpt"):
        plugin.load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "empty.ckpt").mkdir()
    with pytest.raises(tfckpt.NotFoundError, match=r"empty\.ckpt.*interrupted"):
        plugin.load_checkpoint(tmp_path / "empty.ckpt")
    tfckpt.save_file({"w": torch.ones(1)}, tmp_path / "tf.ckpt")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r"not written by TFCheckpointIO.*load_model"):
        plugin.load_checkpoint(tmp_path / "tf.ckpt")
    for number, hostile in enumerate(
        [
            "nonsense",
            "[]",
            '{"items": {"a": "missing"}, "metadata": {}, "order": {}}',
            '{"items": {"a": 1}, "metadata": {}, "order": {}}',
            '{"items": {"a": "a"}, "metadata": {}, "order": {"a": ["x"]}}',
            '{"items": {"b": "b"}, "metadata": {}, "order": {}}',
        ]
    ):
        stored = {"lightning": hostile, "a": "{}", "a/.shared": "{}", "b": '{"x": {"$tensor": "gone"}}'}
        path = tfckpt.save_file(stored, tmp_path / f"hostile-{number}")
        with pytest.raises(tfckpt.DataLossError, match=f"hostile-{number}"):
            plugin.load_checkpoint(path)


@pytest.mark.parametrize("location", ["meta", torch.device("meta"), {"cpu": "meta"}, lambda storage, place: None])
def test_map_location(plugin: Any, location: Any, tmp_path: Path) -> None:
    """As torch.load: a device, a dict of devices, or a function; shared tensors stay shared."""
    shared = torch.ones(2)
    plugin.save_checkpoint({"state_dict": OrderedDict(a=shared, b=shared)}, tmp_path / "m.ckpt")
    state = plugin.load_checkpoint(tmp_path / "m.ckpt", location)["state_dict"]
    assert state["a"].device.type == ("cpu" if callable(location) else "meta")
    assert state["a"] is state["b"] and type(state) is OrderedDict


def make_net(lightning: ModuleType) -> Any:
    """A LightningModule with batch norm, AdamW and a scheduler."""

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.net(batch).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]

    torch.manual_seed(1)
    return Net()


def fit(
    lightning: ModuleType, plugin: Any, directory: Path, epochs: int, resume: str | None = None, **options: Any
) -> Any:
    """Train a new module with the same data as each call; return the module and its trainer."""
    checkpoints = lightning.pytorch.callbacks.ModelCheckpoint(directory, monitor="loss", **options)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[] if plugin is None else [plugin],
        callbacks=[checkpoints],
    )
    net = make_net(lightning)
    data: Any = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=resume)
    return net, trainer


@pytest.mark.parametrize("background", [False, True], ids=["plain", "AsyncCheckpointIO"])
def test_training_continues_bit_for_bit(lightning: ModuleType, plugin: Any, background: bool, tmp_path: Path) -> None:
    """Three epochs and two more after a resume equal five; save_top_k and save_last keep what they keep with torch."""
    io = lightning.pytorch.plugins.io.AsyncCheckpointIO(plugin) if background else plugin
    fit(lightning, io, tmp_path / "run", 3, save_top_k=2, save_last=True)
    net, trainer = fit(lightning, io, tmp_path / "run", 5, "last", save_top_k=2, save_last=True)
    whole, reference = fit(lightning, None, tmp_path / "torch", 5, save_top_k=2, save_last=True)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in net.state_dict().items())
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(tmp_path / "torch"))
    own = trainer.optimizers[0].state_dict()["state"]
    expected = reference.optimizers[0].state_dict()["state"]
    assert all(torch.equal(own[place][slot], value) for place in expected for slot, value in expected[place].items())
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"ckpt.index", "ckpt.data-00000-of-00001"}
    assert plugin.load_checkpoint(tmp_path / "run" / "last.ckpt")["hyper_parameters"] == {"width": 4}


def test_last_as_a_link(lightning: ModuleType, plugin: Any, tmp_path: Path) -> None:
    """save_last="link" links to the newest directory; it can be resumed from."""
    fit(lightning, plugin, tmp_path / "run", 2, save_top_k=-1, save_last="link")
    assert os.readlink(tmp_path / "run" / "last.ckpt") == "epoch=1-step=4.ckpt"
    _, trainer = fit(lightning, plugin, tmp_path / "run", 3, "last", save_top_k=-1, save_last="link")
    assert trainer.global_step == 6


def test_fabric(lightning: ModuleType, plugin: Any, tmp_path: Path) -> None:
    """Fabric saves and loads the state of modules and optimizers in a dict of the program."""
    fabric = lightning.Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    model, optimizer = fabric.setup(net := nn.Linear(2, 1), torch.optim.AdamW(net.parameters()))
    fabric.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    fabric.save(tmp_path / "f.ckpt", {"model": model, "optimizer": optimizer, "step": 7})
    wanted = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.zero_()
    state = {"model": model, "optimizer": optimizer, "step": 0}
    fabric.load(tmp_path / "f.ckpt", state)
    assert state["step"] == 7 and torch.equal(net.weight, wanted)
    assert torch.equal(tfckpt.load_file(tmp_path / "f.ckpt", names=["model/weight"])["model/weight"], wanted)


def test_both_packages_accept_the_plugin(lightning: ModuleType, plugin: Any) -> None:
    """`lightning` and `pytorch_lightning` have classes of their own."""
    fabric = pytest.importorskip("lightning_fabric")
    assert isinstance(plugin, lightning.fabric.plugins.CheckpointIO)
    assert isinstance(plugin, fabric.plugins.CheckpointIO)


def save_and_die(plugin: Any, path: Path) -> int:
    """Save in a process that is killed when the save publishes its first file; return the signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12, about threads
        child = os.fork()
    if child == 0:
        sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGKILL) if event == "os.rename" else None)
        plugin.save_checkpoint({"epoch": 9, "state_dict": {"w": torch.zeros(3)}}, path)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_killed_saves(plugin: Any, tmp_path: Path) -> None:
    """A checkpoint that is saved again stays complete; the next program removes the rest of a first save."""
    plugin.save_checkpoint({"epoch": 1}, tmp_path / "run" / "last.ckpt")
    assert save_and_die(plugin, tmp_path / "run" / "last.ckpt") == signal.SIGKILL
    assert plugin.load_checkpoint(tmp_path / "run" / "last.ckpt") == {"epoch": 1}
    plugin.save_checkpoint({"epoch": 2}, tmp_path / "run" / "last.ckpt")
    assert sorted(os.listdir(tmp_path / "run" / "last.ckpt")) == ["ckpt.data-00000-of-00001", "ckpt.index"]
    assert save_and_die(plugin, tmp_path / "new" / "first.ckpt") == signal.SIGKILL
    assert os.listdir(tmp_path / "new" / "first.ckpt")
    with pytest.raises(tfckpt.NotFoundError, match="interrupted"):
        plugin.load_checkpoint(tmp_path / "new" / "first.ckpt")
    (tmp_path / "new" / "mine").mkdir()
    plugin.save_checkpoint({"epoch": 3}, tmp_path / "new" / "second.ckpt")
    assert sorted(os.listdir(tmp_path / "new")) == ["mine", "second.ckpt"]


def test_a_removal_waits_for_a_save(plugin: Any, tmp_path: Path) -> None:
    """AsyncCheckpointIO saves in a thread and removes at once: neither fails, and nothing is left."""
    state = {"state_dict": {"w": torch.zeros(1_000_000)}}
    errors: list[BaseException] = []

    def save() -> None:
        try:
            for _ in range(20):
                plugin.save_checkpoint(state, tmp_path / "a.ckpt")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    while thread.is_alive():
        plugin.remove_checkpoint(tmp_path / "a.ckpt")
    thread.join()
    plugin.remove_checkpoint(tmp_path / "a.ckpt")
    assert errors == [] and os.listdir(tmp_path) == []


def test_the_example_runs(plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the class's docstring."""
    monkeypatch.chdir(tmp_path)
    [test] = [each for each in doctest.DocTestFinder().find(type(plugin), globs={}) if each.examples]
    assert doctest.DocTestRunner().run(test).failed == 0


def test_no_file_holds_a_pickle(plugin: Any, tmp_path: Path) -> None:
    """Neither the index nor the data can be unpickled."""
    plugin.save_checkpoint({"epoch": 1, "callbacks": {"a": {1, 2}}}, tmp_path / "p.ckpt")
    for path in (tmp_path / "p.ckpt").iterdir():
        with pytest.raises(ValueError):
            list(pickletools.genops(path.read_bytes()))


def test_without_lightning() -> None:
    """The import says how to install it."""
    program = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name.startswith('lightning') else find(name, *a)\n"
        "import torch_tfckpt\n"
        "try:\n"
        "    import torch_tfckpt.integrations.lightning\n"
        "except torch_tfckpt.InvalidArgumentError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (
        "torch_tfckpt.integrations.lightning needs Lightning, which is not installed. pip install 'lightning>=2.5'\n",
        "",
    )
