"""Checkpoints that all ranks write together, read by one process and by other numbers of ranks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rank_processes import RankProcesses
from sharded import LAYOUTS, numbered
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    with RankProcesses(4) as four:
        yield four


@pytest.fixture(scope="module")
def saved(processes: RankProcesses, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with checkpoints of all layouts, m-1 and m-2, by four ranks."""
    folder = tmp_path_factory.mktemp("saved")
    assert processes.call("rank_training:save_layouts", str(folder)) == [0] * 4, "calls of the process group"
    return folder


@pytest.mark.parametrize("name", ["m-1", "m-2"])
def test_one_process_reads_what_four_ranks_saved(saved: Path, name: str) -> None:
    """Whole tensors; every element once."""
    values = tfckpt.load_file(saved / name)
    for layout, shape, *_ in LAYOUTS:
        assert torch.equal(values[layout], numbered(shape)), layout
    assert torch.equal(values["plain"], torch.arange(7))
    assert tfckpt.verify(saved / name).ok
    assert not [each for each in os.listdir(saved) if "tempstate" in each]


def test_tensorflow_reads_what_four_ranks_saved(saved: Path, tensorflow: TensorFlowProcess) -> None:
    """Whole tensors, in its own way of putting slices together."""
    values = tensorflow.call("restore_all", str(saved / "m-2"))
    for layout, shape, *_ in LAYOUTS:
        assert values[layout].shape == shape, layout
        assert values[layout].data == numbered(shape).numpy().tobytes(), layout


def test_a_checkpoint_without_some_elements_is_not_published(processes: RankProcesses, tmp_path: Path) -> None:
    """On all ranks, with the tensor and the ranks that have saved some of it; half of the ranks may have it all."""
    found = processes.call("rank_training:incomplete", str(tmp_path))
    for rank, errors in enumerate(found):
        assert (
            'm: tensor "x": only 18 of its 24 elements were saved, by rank 0, rank 1, rank 3. All ranks'
            in errors.pop("one rank saves nothing of it")
        )
        assert 'm: tensor "x": only 18 of its 24 elements' in errors.pop("other placements")
        assert f'm{rank // 2}: tensor "x": only 12 of its 24 elements' in errors.pop("half of the ranks")
        (copies,) = errors.values()
        assert copies == "True" if rank < 2 else 'm1: no rank has saved "x". Of the copies' in copies
    assert {name.partition(".")[0] for name in os.listdir(tmp_path)} == {"m0"}


def test_slices_that_tensorflow_cannot_join_are_told(processes: RankProcesses, tmp_path: Path) -> None:
    """Once, by rank 0, with the command that helps."""
    told, *others = processes.call("rank_training:logged_by_a_save", str(tmp_path))
    assert told == [
        f'{tmp_path}/m: TensorFlow cannot join slices of the dtypes of 1 tensors, such as "half in slices". For '
        f"TensorFlow, store them whole: `tfckpt convert {tmp_path}/m TARGET --to tf`"
    ]
    assert others == [[]] * 3


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_ranks_restores(processes: RankProcesses, saved: Path, count: int) -> None:
    """Each its own rows."""
    assert processes.call("rank_training:restore_rows", str(saved), world_size=count) == [True] * count


@pytest.mark.parametrize("kind", ["fsdp", "hsdp", "tp", "tp and fsdp"])
def test_one_process_continues_what_was_spread(processes: RankProcesses, tmp_path: Path, kind: str) -> None:
    """Module and AdamW of FSDP2, HSDP, tensor parallelism and both."""
    processes.call("rank_training:save_spread", str(tmp_path), kind, "adamw")
    processes.call("rank_training:restore_alone", str(tmp_path), "adamw", world_size=1)
