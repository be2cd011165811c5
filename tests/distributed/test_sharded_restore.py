"""Restore a checkpoint of one process into state that is spread over ranks: each rank reads its part, alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import RankProcesses
from sharded import KINDS, LAYOUTS, numbered
from sharded_state import INNER, OPTIMIZERS, WIDTH, Averages, Tied

import torch_tfckpt as tfckpt

DTYPES = [
    *(torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.uint8, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]
SOME_OR_ALL = pytest.mark.parametrize(
    "dtypes", [DTYPES[:2], pytest.param(DTYPES, marks=pytest.mark.heavy)], ids=["two dtypes", "all dtypes"]
)


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    with RankProcesses(4) as four:
        yield four


def _saved(processes: RankProcesses, folder: Path, *args: Any) -> str:
    (path,) = processes.call("sharded_state:save_trained", str(folder), *args, world_size=1)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_module_and_adamw_of_one_process(processes: RankProcesses, tmp_path: Path, kind: str) -> None:
    """All values are bit for bit those of the file, moments are spread as the parameters, the next step is the same."""
    layouts = processes.call("sharded_state:restore_trained", _saved(processes, tmp_path, "adamw"), kind, "adamw")
    assert len(layouts[0]) == (4 if kind == "tp" else 6)
    assert layouts[1:] == layouts[:-1]


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_optimizers(processes: RankProcesses, tmp_path: Path, optimizer: str) -> None:
    """Before and after the first step of the new optimizer; on 3 ranks, so that shards are uneven and some empty."""
    path = _saved(processes, tmp_path, optimizer)
    for first_step in (False, True):
        processes.call("sharded_state:restore_trained", path, "fsdp", optimizer, first_step=first_step, world_size=3)


def test_bfloat16_with_moments(processes: RankProcesses, tmp_path: Path) -> None:
    path = _saved(processes, tmp_path, "adamw", torch.bfloat16)
    processes.call("sharded_state:restore_trained", path, "fsdp", "adamw", dtype=torch.bfloat16, world_size=1)


@SOME_OR_ALL
def test_every_layout_and_dtype(processes: RankProcesses, tmp_path: Path, dtypes: list[torch.dtype]) -> None:
    """Uneven and empty shards, copies, scalars, no elements; bit for bit, also sequentially and read in place."""
    values = {f"{name} {dtype}": numbered(shape, dtype) for name, shape, _, _ in LAYOUTS for dtype in dtypes}
    path = tfckpt.save_file(values, tmp_path / "layouts")
    counts = processes.call("sharded_state:restore_layouts", path, LAYOUTS, dtypes)
    assert counts == [3 * len(values)] * 4


@SOME_OR_ALL
def test_load_file_like(processes: RankProcesses, tmp_path: Path, dtypes: list[torch.dtype]) -> None:
    """The same layouts and dtypes by load_file(like=), and plain tensors; templates are unchanged."""
    values = {f"{name} {dtype}": numbered(shape, dtype) for name, shape, _, _ in LAYOUTS for dtype in dtypes}
    values |= {"plain": torch.tensor([1.0, 2, 3]), "meta": torch.tensor([1.0, 2, 3]), "other": torch.ones(2)}
    path = tfckpt.save_file(values, tmp_path / "layouts")
    counts = processes.call("sharded_state:load_like", path, LAYOUTS, dtypes)
    assert counts == [len(values) - 1] * 4


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that Linux reports")
def test_load_file_like_reads_only_its_part(processes: RankProcesses, tmp_path: Path) -> None:
    path = tfckpt.save_file({"large": numbered((4096, 256))}, tmp_path / "large")
    for count in processes.call("sharded_state:load_own_bytes", path):
        assert 1024 * 256 * 4 <= count <= 1.2 * 1024 * 256 * 4


def test_load_file_like_refuses_what_does_not_fit(tmp_path: Path) -> None:
    """Another dtype, another shape, a value that is not a tensor, arguments that `like` determines, a missing name."""
    path = tfckpt.save_file({"w": torch.ones(2, 3), "s": "text"}, tmp_path / "m")
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"w" is stored as DT_FLOAT, but `like` has torch.float16'):
        tfckpt.load_file(path, like={"w": torch.ones(2, 3, dtype=torch.float16)})
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'"w" is stored with shape \[2,3\], but `like` has \[6\]'):
        tfckpt.load_file(path, like={"w": torch.ones(6)})
    with pytest.raises(tfckpt.InvalidArgumentError, match='"s" is stored as DT_STRING'):
        tfckpt.load_file(path, like={"s": torch.ones(6)})
    with pytest.raises(tfckpt.InvalidArgumentError, match='the value of "w" is a int, not a tensor'):
        tfckpt.load_file(path, like={"w": 3})  # type: ignore[dict-item]
    with pytest.raises(tfckpt.InvalidArgumentError, match="`like` determines the names"):
        tfckpt.load_file(path, like={"w": torch.ones(2, 3)}, names=["w"])
    with pytest.raises(tfckpt.NotFoundError, match="v"):
        tfckpt.load_file(path, like={"v": torch.ones(2, 3)})


def test_tied_weights_and_hooks(processes: RankProcesses, tmp_path: Path) -> None:
    path = tfckpt.Saver({"model": Tied()}).save(tmp_path / "tied")
    names = processes.call("sharded_state:restore_tied", str(path))
    assert names[0] == ["model/.shared", "model/embed.weight", "model/hooked.bias", "model/hooked.weight"]
    assert names[1:] == names[:-1]


def test_state_that_is_spread_like_the_current_state(processes: RankProcesses, tmp_path: Path) -> None:
    averages = Averages(numbered((5, 3)))
    averages.state |= {"count": torch.tensor(4), "scale": 0.5}
    state = {"ema": [numbered((5, 3)) + 1, torch.ones(2)], "at": 3}
    path = tfckpt.Saver({"averages": averages, "state": state}).save(tmp_path / "state")
    processes.call("sharded_state:restore_state", str(path))


def test_reshape(processes: RankProcesses, tmp_path: Path) -> None:
    path = tfckpt.save_file({"flat": numbered((15,))}, tmp_path / "flat")
    processes.call("sharded_state:restore_with_reshape", path)


def test_parameters_that_are_added_later(processes: RankProcesses, tmp_path: Path) -> None:
    processes.call("sharded_state:restore_late_parameters", _saved(processes, tmp_path, "adamw"), world_size=3)


def test_without_ranks_everything_is_refused_by_name(processes: RankProcesses, tmp_path: Path) -> None:
    """Saver, save_file and Checkpoint name the tensor and ranks=; no file of theirs is left."""
    for messages in processes.call("sharded_state:refused_without_ranks", str(tmp_path)):
        names = ("x", "model/", "x", "x", "state/x", "model/", "model/", "n")
        for message, name in zip(messages, names, strict=True):
            assert f'tensor "{name}' in message, message
            assert "pass ranks=tfckpt.Ranks()" in message, message
    assert not list(tmp_path.glob("alone*"))


def test_names_are_those_of_one_process(processes: RankProcesses, tmp_path: Path) -> None:
    """The names that the tests above restored: a Saver's own."""
    path = _saved(processes, tmp_path, "adamw")
    names = [name for name, _ in tfckpt.list_variables(path)]
    assert "model/up.weight" in names
    assert "optim/state/up.weight/exp_avg" in names
    with tfckpt.load_checkpoint(path) as reader:
        assert reader.shape("model/up.weight") == (INNER, WIDTH)
