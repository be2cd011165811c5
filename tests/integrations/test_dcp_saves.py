"""All ways of torch.distributed.checkpoint to save give a checkpoint without pickles, and what cannot be stored is
named."""

import re
from pathlib import Path

import pytest
from rank_processes import RankProcesses

import torch_tfckpt as tfckpt
from torch_tfckpt.format.data_type import DataType

PROLOGUE = re.compile(rb"^\x80[\x02-\x05]")  # of a pickle


def check_no_pickles(folder: Path) -> None:
    """No file is a zip archive or a pickle, and no stored string is one."""
    prefixes = {path.with_suffix("") for path in folder.glob("*.index")}
    assert prefixes
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not content.startswith(b"PK")
        assert not PROLOGUE.match(content)
        assert b"torch" not in content
    for prefix in prefixes:
        with tfckpt.load_checkpoint(prefix) as reader:
            for key in reader:
                if reader.dtype(key) == DataType.DT_STRING:
                    assert not PROLOGUE.match(reader.get_strings(key).item())


def test_cached_plans(processes: RankProcesses, tmp_path: Path) -> None:
    """Three saves with one plan, and one with another, have their own values."""
    assert processes.call("dcp_saves:cached_plans", str(tmp_path), world_size=2) == [[[], [], [], []]] * 2
    check_no_pickles(tmp_path)


@pytest.mark.parametrize("kind", ["thread", "stager", pytest.param("process", marks=pytest.mark.heavy)])
def test_saves_in_the_background(kind: str, processes: RankProcesses, tmp_path: Path) -> None:
    """The values are those at the time of the call."""
    assert processes.call("dcp_saves:saved_in_the_background", str(tmp_path), kind, world_size=2) == [[], []]
    check_no_pickles(tmp_path)


def test_a_writer_can_be_sent(processes: RankProcesses, tmp_path: Path) -> None:
    """A writer that has saved can be pickled, and saves again."""
    assert processes.call("dcp_saves:writer_by_pickle", str(tmp_path), world_size=2) == [[], []]


def test_other_planners(processes: RankProcesses, tmp_path: Path) -> None:
    """Planners that do not flatten, rename values, or have no state_dict work as well."""
    first, second = processes.call("dcp_saves:with_other_planners", str(tmp_path), world_size=2)
    assert first == [[], ["x", "y"]]
    assert second == [[]]


def test_refusals(processes: RankProcesses, tmp_path: Path) -> None:
    """What cannot be stored is named to all ranks, and nothing is left after the next save."""
    found, other = processes.call("dcp_saves:refused", str(tmp_path), world_size=2)
    assert found == other
    messages = {case: " ".join(failures.values()) for case, failures in found.items()}
    assert 'TypeError: state "a/b/1/c" is a dcp_saves.Unknown' in messages["object"]
    assert 'TypeError: state "a" is a builtins.builtin_function_or_method' in messages["function"]
    assert 'InvalidArgumentError: tensor "a/b" is a torch.sparse_coo tensor' in messages["sparse"]
    assert '"a.b" and "a/b" of the state_dict would both be stored as "a/b"' in messages["one key"]
    assert '"a" is a tuple that contains a DTensor' in messages["part in a tuple"]
    assert '"a.c" and "a/c" of the state_dict would both be stored as "a/c"' in messages["document and tensor"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.data-00000-of-00001", "good.index"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_without_collectives(ranks: int, processes: RankProcesses, tmp_path: Path) -> None:
    """Each value is stored once, and read on any number of ranks; what nobody would write is an error on all."""
    for found in processes.call("dcp_saves:without_collectives", str(tmp_path), world_size=ranks):
        assert found[:2] == [[], []]
        assert found[2] == "saved" or "no rank has written" in found[2]
    assert processes.call("dcp_ranks:load_layouts", str(tmp_path / "alone"), world_size=3) == [[]] * 3


def test_a_failure_without_collectives(processes: RankProcesses, tmp_path: Path) -> None:
    """The other ranks are told which rank failed, and the next save works."""
    found = processes.call("dcp_saves:failing_without_collectives", str(tmp_path), world_size=2)
    for rank, errors in enumerate(found):
        assert len(errors) == 3
        assert "No space left on device" in errors[2]
        assert errors[rank].startswith("UnimplementedError")
        assert errors[1 - rank].startswith("IncompleteSaveError")
        assert f"rank {1 - rank}" in errors[1 - rank] and '"net/w"' in errors[1 - rank]
    names = ["good.data-00000-of-00003", "good.data-00001-of-00003", "good.data-00002-of-00003", "good.index"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_ranks_that_differ_without_collectives(processes: RankProcesses, tmp_path: Path) -> None:
    """What would be wrong for one of them, or incomplete, is not published."""
    for found in processes.call("dcp_saves:different_without_collectives", str(tmp_path), world_size=2):
        dtype, shape, missing = found
        assert '"a" is torch.float32 [2] on rank 0, but torch.int64 [2] on rank 1. All ranks must save' in dtype
        assert '"a" is torch.float32 [2] on rank 0, but torch.float32 [3] on rank 1' in shape
        assert 'tensor "x": only 12 of its 21 elements were saved, by rank 0' in missing
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m", "m" * 230], ids=["short", "long"])
@pytest.mark.parametrize("scheme", ["local://", ""], ids=["without renames", "with renames"])
def test_saving_over_a_checkpoint(scheme: str, name: str, processes: RankProcesses, tmp_path: Path) -> None:
    """Without renames, files are written under final names, and those of the replaced checkpoint are removed."""
    pytest.importorskip("fsspec")
    found = processes.call("dcp_saves:save_again_and_again", f"{scheme}{tmp_path}/{name}", world_size=2)
    assert found == [[[], [], []]] * 2
    assert sum("data" in path.name for path in tmp_path.iterdir()) == (3 if scheme else 1)
    state = tfckpt.load_file(tmp_path / name)
    assert state["step"].item() == b"4"
