"""The data file in which each value of a tree of objects is stored."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.objects.options import CheckpointOptions
from torch_tfckpt.objects.save import begin_to_save, complete
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.saveables.variables import Variable
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.transfer.staging import Staging


def files_of(path: Path, devices: Mapping[str, str | None], options: CheckpointOptions) -> dict[str, str]:
    """Return the end of each value's data file name, after saving variables on these devices."""
    variables = {name: Variable(torch.zeros(1), name, device=device) for name, device in devices.items()}
    pending = begin_to_save(trackable_of(variables, "root"), LOCAL, str(path), options, Staging(), snapshot=False)
    with CheckpointReader(complete(pending, options, lambda: None, begun=0.0)) as reader:
        return {name.partition("/")[0]: reader.locate(name)[0].rpartition(".data-")[2] for name in reader}


WORKER = "/job:worker/replica:0/task:{}/device:CPU:0".format


@pytest.mark.parametrize(
    ("devices", "sharded", "expected"),
    [
        ({"a": "/cpu:0", "b": "/cpu:1"}, False, {"a": "00000-of-00001", "b": "00000-of-00001"}),
        ({"a": None, "b": "/cpu:1"}, True, {"a": "00000-of-00002", "b": "00001-of-00002"}),
        ({"a": WORKER(1), "b": WORKER(0)}, False, {"a": "00001-of-00002", "b": "00000-of-00002"}),
        ({"a": WORKER(1), "b": None}, False, {"a": "00001-of-00002", "b": "00000-of-00002"}),
        ({"a": WORKER(1)}, False, {"a": "00000-of-00001"}),
        ({"a": "/gpu:1", "b": "/gpu:0"}, True, {"a": "00001-of-00002", "b": "00000-of-00002"}),
        ({}, False, {}),
        ({}, True, {}),
    ],
    ids=[
        "one host",
        "devices",
        "hosts",
        "this host first",
        "another host",
        "no device of the host",
        "none",
        "no device",
    ],
)
def test_files(tmp_path: Path, devices: Mapping[str, str | None], sharded: bool, expected: dict[str, str]) -> None:
    """One file per host or per device; the graph is in this host's file, or else in the first one."""
    found = files_of(tmp_path / "m", devices, CheckpointOptions(sharded=sharded))
    assert found.pop(OBJECT_GRAPH_KEY).startswith("00000")
    assert found == expected


def test_the_graph_is_last_in_its_file(tmp_path: Path) -> None:
    """As in TensorFlow, no other value comes after the graph."""
    files_of(tmp_path / "m", {"z": None}, CheckpointOptions())
    data = (tmp_path / "m.data-00000-of-00001").read_bytes()
    with CheckpointReader(tmp_path / "m") as reader:
        assert data.endswith(reader.get_stored_bytes(OBJECT_GRAPH_KEY))


def test_a_value_that_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    """Only its directory may have been created."""
    bad = {"x": torch.empty(2, device="meta")}
    with pytest.raises(InvalidArgumentError, match="meta tensor"):
        begin_to_save(
            trackable_of(bad, "root"),
            LOCAL,
            str(tmp_path / "new" / "m"),
            CheckpointOptions(),
            Staging(),
            snapshot=False,
        )
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
