"""One format for both worlds: what ranks save through torch.distributed.checkpoint, a Saver restores, and the
reverse."""

from pathlib import Path
from typing import Any

import pytest
from dcp_ranks import model_and_optimizer, same, training_state
from rank_processes import RankProcesses

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
