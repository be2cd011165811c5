"""TensorFlow reads what ranks save with torch.distributed.checkpoint, and ranks load what TensorFlow saves."""

from pathlib import Path

import pytest
import torch
from dcp_ranks import HALF, full_tensor, full_tensors
from rank_processes import RankProcesses
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt

PARTITIONED = ("rows", "uneven", "columns")


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensorflow_reads_all_layouts(
    ranks: int, processes: RankProcesses, tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """Whole tensors, and partitioned variables with other partitioners; slices of float16 after a conversion."""
    path, converted = str(tmp_path / "ckpt"), str(tmp_path / "whole")
    processes.call("dcp_ranks:save_layouts", path, world_size=ranks)
    tfckpt.convert(path, converted, to="tf")
    wanted = {name: RawTensor.of(value) for name, value in full_tensors().items()}
    names = [name for name in wanted if name != HALF]
    assert dict(zip(names, tensorflow.call("restore", path, names), strict=True)) == {n: wanted[n] for n in names}
    assert tensorflow.call("restore", converted, list(wanted)) == list(wanted.values())
    for name in PARTITIONED:
        blank = RawTensor.of(torch.zeros_like(full_tensor(name)))
        for parts in (1, 3):
            assert tensorflow.call("restore_partitioned", path, name, blank, parts) == wanted[name]


def test_ranks_load_what_tensorflow_saves(
    processes: RankProcesses, tensorflow: TensorFlowProcess, tmp_path: Path
) -> None:
    """Whole tensors of both versions, and partitioned variables, on any number of ranks."""
    tensors = {
        name: RawTensor.of(full_tensor(name)) for name in ("rows", "both", "bool", "int64", "scalar", "no elements")
    }
    tensorflow.call("save_v2", str(tmp_path / "v2"), tensors)
    tensorflow.call(
        "save_v1", str(tmp_path / "v1"), {name: tensors[name] for name in ("rows", "both", "bool", "int64")}
    )
    for count in (2, 3, 4):
        for version in ("v1", "v2"):
            names = [name for name in tensors if version == "v2" or name not in ("scalar", "no elements")]
            found = processes.call("dcp_ranks:load_named", str(tmp_path / version), names, world_size=count)
            assert found == [[]] * count
    for name in PARTITIONED:
        path = str(tmp_path / f"{name} in parts")
        tensorflow.call("save_partitioned", path, name, RawTensor.of(full_tensor(name)), 3)
        assert processes.call("dcp_ranks:load_named", path, [name], world_size=4) == [[]] * 4
