"""Checkpoint, CheckpointManager, save_file and Saver with ranks: the same lines on all ranks (threads here)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_faults import FaultyStorage, out_of_space
from rank_threads import together

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import IncompleteSaveError, InvalidArgumentError

COUNT = 3


def values() -> dict[str, torch.Tensor]:
    return {f"w{number}": torch.arange(number + 1.0) for number in range(8)}


def test_save_file_by_all_ranks(tmp_path: Path) -> None:
    """One checkpoint, with a data file for each rank that had something to write."""
    prefix = str(tmp_path / "m")
    assert together(COUNT, lambda ranks: tfckpt.save_file(values(), prefix, ranks=ranks)) == [prefix] * COUNT
    loaded = tfckpt.load_file(prefix)
    assert all(torch.equal(loaded[name], value) for name, value in values().items())
    assert len(loaded) == len(values())
    assert [name for name in os.listdir(tmp_path) if "tempstate" in name] == []


def test_a_checkpoint_of_all_ranks(tmp_path: Path) -> None:
    """Saved and restored together; one process without ranks restores it, too."""

    def act(ranks: tfckpt.Ranks) -> tuple[str, int, float]:
        weight = torch.full((3,), 2.0)
        checkpoint = tfckpt.Checkpoint(weight=weight, epoch=3, other=torch.zeros(2), ranks=ranks)
        path = checkpoint.save(tmp_path / "ckpt")
        weight.zero_()
        checkpoint.epoch = 0
        checkpoint.restore(path).assert_consumed()
        return (
            os.path.basename(checkpoint.save_async(tmp_path / "ckpt").result()),
            checkpoint.epoch,
            float(weight.sum()),
        )

    assert together(COUNT, act) == [("ckpt-2", 3, 6.0)] * COUNT
    alone = tfckpt.Checkpoint(weight=torch.zeros(3), epoch=0, other=torch.ones(2))
    alone.restore(tmp_path / "ckpt-2").assert_consumed()
    assert (alone.epoch, float(alone.weight.sum())) == (3, 6.0)
    assert tfckpt.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-2")


@pytest.mark.parametrize("of", ["Checkpoint", "Saver"])
def test_a_manager_of_all_ranks(tmp_path: Path, of: str) -> None:
    """The files are written by rank 0; all ranks know the same checkpoints, in the next run, too."""

    def act(ranks: tfckpt.Ranks) -> tuple[list[str], str | None, list[str]]:
        saved: Any = tfckpt.Saver(values(), ranks=ranks)
        if of == "Checkpoint":
            saved = tfckpt.Checkpoint(**values(), ranks=ranks)
        best = tfckpt.KeepBest("loss", "min", k=1)
        manager = tfckpt.CheckpointManager(saved, tmp_path, 2, keep_best=best)
        found = manager.restore_or_initialize()
        paths = [manager.save(metrics={"loss": loss}) for loss in (0.1, 0.3, 0.2)]
        return (
            [os.path.basename(path) for path in paths],
            found,
            [os.path.basename(each) for each in manager.checkpoints],
        )

    assert together(COUNT, act) == [(["ckpt-1", "ckpt-2", "ckpt-3"], None, ["ckpt-2", "ckpt-3"])] * COUNT
    again = (["ckpt-4", "ckpt-5", "ckpt-6"], str(tmp_path / "ckpt-3"), ["ckpt-5", "ckpt-6"])
    assert together(COUNT, act) == [again] * COUNT
    assert [name for name in os.listdir(tmp_path) if "tempstate" in name or "unlisted" in name] == []


def test_metrics_and_retention_of_a_saver(tmp_path: Path) -> None:
    """`last_checkpoints` and `best_checkpoint` are those of rank 0, on every rank."""

    def act(ranks: tfckpt.Ranks) -> tuple[list[str], str | None]:
        saver = tfckpt.Saver(values(), ranks=ranks, max_to_keep=2, keep_best=tfckpt.KeepBest("loss", "min", k=1))
        for step, loss in enumerate((0.1, 0.3, 0.2, 0.4)):
            saver.save(tmp_path / "m", step, metrics={"loss": loss})
        return [os.path.basename(path) for path in saver.last_checkpoints], saver.best_checkpoint

    assert together(COUNT, act) == [(["m-2", "m-3"], str(tmp_path / "m-0"))] * COUNT


def test_replicas_that_differ_are_named(tmp_path: Path) -> None:
    """With check_replicas; nothing is published."""

    def act(ranks: tfckpt.Ranks) -> None:
        checked = tfckpt.Ranks(ranks._calls._given, rank=ranks.rank, world_size=4, check_replicas=True)
        state = {"same": torch.ones(3), "differs": torch.tensor(float(ranks.rank // 2)), "text": ["a", 1]}
        tfckpt.Saver(state, ranks=checked).save(tmp_path / "m")

    for error in together(4, act):
        assert isinstance(error, IncompleteSaveError)
        assert 'the replicas of values differ: "differs" differs: ranks 0, 1 / ranks 2, 3. Nothing' in str(error)
        assert sorted(error.failures) == [2, 3]
    assert os.listdir(tmp_path) == []


def test_names_that_only_some_ranks_have_are_refused(tmp_path: Path) -> None:
    """They would be written by no rank, or not."""

    def act(ranks: tfckpt.Ranks) -> None:
        own = {"own": torch.ones(1)} if ranks.rank == 1 else {}
        tfckpt.Saver({"w": torch.ones(2), **own}, ranks=ranks).save(tmp_path / "m")

    for error in together(COUNT, act):
        assert isinstance(error, IncompleteSaveError)
        assert (
            "the ranks save values with different names, apart from DTensors (ranks 0, 2: 1 values; rank 1: 2"
            in str(error)
        )


@pytest.mark.parametrize("dtypes", [False, True])
def test_other_shapes_or_dtypes_on_some_ranks_are_refused(tmp_path: Path, dtypes: bool) -> None:
    """The values are named. Otherwise that of one rank would be stored, and be wrong for the others."""

    def act(ranks: tfckpt.Ranks) -> None:
        state = {f"w{number}": torch.ones(3) for number in range(300)}
        if ranks.rank == 1:
            state["w7"] = torch.ones(3, dtype=torch.int64) if dtypes else torch.ones(4)
        tfckpt.save_file(state, tmp_path / "m", ranks=ranks)

    for error in together(COUNT, act):
        assert isinstance(error, IncompleteSaveError)
        assert "values with different names, shapes or dtypes, apart from DTensors (ranks 0, 2: 300 values; " in str(
            error
        )
        assert 'rank 1: 300 values), such as "w7". All ranks must save the same' in str(error)
        assert list(error.failures) == [1]
    assert os.listdir(tmp_path) == []


def test_an_object_that_cannot_be_saved_is_refused_on_its_rank(tmp_path: Path) -> None:
    """With its own error there; the other ranks are told."""

    def act(ranks: tfckpt.Ranks) -> None:
        state: dict[str, object] = {"w": torch.ones(2), "config": {"f": 1}}
        saver = tfckpt.Saver(state, ranks=ranks)
        if ranks.rank == 1:
            state["config"]["f"] = object()  # type: ignore[index]
        saver.save(tmp_path / "m")

    zero, one, two = together(COUNT, act)
    assert isinstance(one, TypeError)
    for error in (zero, two):
        assert isinstance(error, IncompleteSaveError)
        assert "rank 1 of 3 failed: TypeError: " in str(error)
    assert os.listdir(tmp_path) == []


def _bad_metric(ranks: tfckpt.Ranks, folder: Path) -> None:
    metrics: Any = {"loss": None if ranks.rank else 1.0}
    tfckpt.Saver(values(), ranks=ranks).save(folder / "m", metrics=metrics)


def _bad_step(ranks: tfckpt.Ranks, folder: Path) -> None:
    tfckpt.Saver(values(), ranks=ranks).save_async(folder / "m", "x" if ranks.rank else 1).result()


def _bad_name(ranks: tfckpt.Ranks, folder: Path) -> None:
    own: dict[Any, torch.Tensor] = {3: torch.ones(1)} if ranks.rank else {}
    tfckpt.save_file({**values(), **own}, folder / "m", ranks=ranks)


def _nothing_to_restore(ranks: tfckpt.Ranks, folder: Path) -> None:
    tfckpt.Saver(values(), ranks=ranks).restore(None if ranks.rank else folder / "old")


def _bad_counter(ranks: tfckpt.Ranks, folder: Path) -> None:
    step: Any = (lambda: 1 / 0) if ranks.rank else (lambda: 1)
    saver = tfckpt.Saver(values(), ranks=ranks)
    tfckpt.CheckpointManager(saver, folder / "m", 2, step_counter=step, checkpoint_interval=1).save()


@pytest.mark.parametrize("act", [_bad_metric, _bad_step, _bad_name, _nothing_to_restore, _bad_counter])
def test_an_error_before_a_call_begins_is_told(tmp_path: Path, act: Callable[[tfckpt.Ranks, Path], None]) -> None:
    """At once, instead of leaving the others to wait; the next save works."""
    tfckpt.save_file(values(), tmp_path / "old")

    def both(ranks: tfckpt.Ranks) -> tuple[BaseException, str]:
        with pytest.raises(Exception, match=r".") as caught:
            act(ranks, tmp_path)
        return caught.value, tfckpt.save_file(values(), tmp_path / "next", ranks=ranks)

    (zero, saved), (one, _) = together(2, both)
    assert not isinstance(one, IncompleteSaveError)
    assert "rank 1 of 2" in str(zero)
    assert str(one) in str(zero)
    assert tfckpt.verify(saved).ok
    assert not list((tmp_path / "m").glob("*"))


@pytest.mark.parametrize("of", ["Checkpoint", "Saver"])
def test_ranks_stay_in_step_when_only_one_has_asked_for_an_error(tmp_path: Path, of: str) -> None:
    """The error of a save in the background comes in the next save of a rank that has not called `result`."""

    def act(ranks: tfckpt.Ranks) -> list[str]:
        storage: Any = FaultyStorage("write", out_of_space)
        storage.armed = True
        saver = tfckpt.Saver(values(), ranks=ranks, storage=storage)
        checkpoint = tfckpt.Checkpoint(**values(), ranks=ranks, storage=storage)
        begun = (saver if of == "Saver" else checkpoint).save_async(tmp_path / "m")
        save = saver.save if of == "Saver" else checkpoint.save
        outcomes = []
        if ranks.rank == 0:
            with pytest.raises(IncompleteSaveError, match="No space left"):
                begun.result()
        for name in ("a", "b"):
            try:
                outcomes.append(os.path.basename(save(tmp_path / name)))
            except IncompleteSaveError as error:
                outcomes.append("failed" if "No space left" in str(error) else str(error))
        return outcomes

    assert together(2, act) == [["failed", "b" if of == "Saver" else "b-3"]] * 2


def test_the_error_of_a_meta_graph_is_told(tmp_path: Path) -> None:
    """It is written by rank 0 alone."""

    def act(ranks: tfckpt.Ranks) -> None:
        saver = tfckpt.Saver(values(), ranks=ranks)
        graph: Any = saver._graph
        graph.described = lambda described: lambda: 1 / 0
        saver.save(tmp_path / "m")

    zero, one = together(2, act)
    assert isinstance(zero, ZeroDivisionError)
    assert "rank 0 of 2 failed: ZeroDivisionError: division by zero" in str(one).replace("RuntimeError: ", "")


def test_all_ranks_must_find_the_same_checkpoint(tmp_path: Path) -> None:
    """One of which finds none is an error on all, not a start from scratch on one of them."""
    tfckpt.CheckpointManager(tfckpt.Saver(values()), tmp_path / "0", 2).save()

    def act(ranks: tfckpt.Ranks) -> list[str]:
        messages = []
        checkpoint = tfckpt.Checkpoint(**values(), ranks=ranks)
        manager = tfckpt.CheckpointManager(tfckpt.Saver(values(), ranks=ranks), tmp_path / str(ranks.rank), 2)
        for call in (
            lambda: checkpoint.restore(None if ranks.rank else tmp_path / "0" / "ckpt-1"),
            manager.restore_or_initialize,
        ):
            with pytest.raises(InvalidArgumentError) as caught:
                call()
            messages.append(str(caught.value))
        return messages

    for messages in together(2, act):
        assert len(messages) == 2
        for message in messages:
            assert f"the ranks name different checkpoints: {tmp_path}/0/ckpt-1: rank 0; None: rank 1" in message


def test_what_ranks_cannot_do_is_refused(tmp_path: Path) -> None:
    """When the Saver is made, or before anything is written."""

    def act(ranks: tfckpt.Ranks) -> list[str]:
        messages = []
        for call in (
            lambda: tfckpt.Saver(values(), ranks=ranks, write_version=tfckpt.SaverDef.V1),
            lambda: tfckpt.Saver(values(), ranks=ranks, builder=tfckpt.BaseSaverBuilder()),
            lambda: tfckpt.Saver(values(), ranks=3),  # type: ignore[arg-type]
            lambda: tfckpt.Saver(values(), ranks=ranks).save_async(tmp_path / "m", if_busy="skip"),
        ):
            with pytest.raises(InvalidArgumentError) as caught:
                call()
            messages.append(str(caught.value))
        return messages

    (messages,) = together(1, act)
    assert [message[:5] for message in messages] == ["ranks", "ranks", "ranks", "if_bu"]
