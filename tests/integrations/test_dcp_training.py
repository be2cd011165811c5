"""One format for both worlds: what ranks save through torch.distributed.checkpoint, a Saver restores, and the
reverse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dcp_ranks import model_and_optimizer, same, training_state
from rank_processes import RankProcesses
from sharded import numbered
from torch import nn

import torch_tfckpt as tfckpt


def restored_by_a_saver(path: str, optimizer: str) -> Any:
    model, used = model_and_optimizer("plain", optimizer, train=False)
    tfckpt.Saver({"model": model, "optim": used}).restore(path)
    return training_state(model, used)


@pytest.mark.parametrize(
    ("kind", "optimizer", "flat"),
    [("fsdp", "adamw", False), ("tp and fsdp", "adamw", False), ("hsdp", "adamw", True), ("fsdp", "sgd", True)],
)
def test_ranks_to_saver_and_back(
    kind: str, optimizer: str, flat: bool, processes: RankProcesses, tmp_path: Path
) -> None:
    """Model, moments, steps and hyperparameters are equal bit for bit, on any number of ranks, flattened or not."""
    path = str(tmp_path / "ranks" / "ckpt")
    wanted, *_ = processes.call("dcp_ranks:save_training", path, kind, optimizer, flat=flat)
    assert same(wanted, restored_by_a_saver(path, optimizer))
    model, used = model_and_optimizer("plain", optimizer, train=True)
    own = training_state(model, used)
    by_saver = tfckpt.Saver({"model": model, "optim": used}).save(tmp_path / "saver" / "ckpt")
    for count in (1, 2, 3):
        for stored, state in ((path, wanted), (by_saver, own)):
            for found in processes.call(
                "dcp_ranks:load_training", stored, "fsdp", optimizer, world_size=count, flat=flat != (count == 2)
            ):
                assert same(state, found)


def test_pipelines(processes: RankProcesses, tmp_path: Path) -> None:
    """Ranks with layers of their own save one checkpoint, which is loaded with another division, or by a Saver."""
    path = str(tmp_path / "ckpt")
    saved = processes.call("dcp_ranks:pipeline", path, saves=True, world_size=4)
    wanted = {part: {name: value for each in saved for name, value in each[part].items()} for part in saved[0]}
    for count in (1, 2):
        found = processes.call("dcp_ranks:pipeline", path, saves=False, world_size=count)
        for part, values in wanted.items():
            assert same(values, {name: value for each in found for name, value in each[part].items()})
    model = nn.ModuleDict({f"layer{number}": nn.Linear(3, 3) for number in range(4)})
    optimizer = torch.optim.AdamW([{"params": list(layer.parameters())} for layer in model.values()])
    tfckpt.Saver({"model": model, "optim": optimizer}).restore(path)
    assert same(wanted, training_state(model, optimizer))


def test_a_mapper_on_ranks(processes: RankProcesses, tmp_path: Path) -> None:
    """Each rank reads its part of kernels with TensorFlow's order of axes."""
    stored = {
        "dense/kernel": numbered((6, 10)),
        "dense/bias": numbered((10,)),
        "out/kernel": numbered((10, 6)),
        "out/bias": numbered((6,)),
    }
    path = tfckpt.save_file(stored, tmp_path / "tf")
    wanted = {
        "up.weight": stored["dense/kernel"].T.contiguous(),
        "up.bias": stored["dense/bias"],
        "down.weight": stored["out/kernel"].T.contiguous(),
        "down.bias": stored["out/bias"],
    }
    for found in processes.call("dcp_ranks:load_mapped", path, world_size=3):
        assert same(wanted, found)
