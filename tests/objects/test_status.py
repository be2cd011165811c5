"""Load statuses: which asserts hold, and their messages."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.status import CheckpointLoadStatus, InitializationOnlyStatus, LoadStatus, NameBasedSaverStatus
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.saveables.identity import identity_of
from torch_tfckpt.saver.saver import Saver

ASSERTS: dict[str, Callable[[LoadStatus], LoadStatus]] = {
    "consumed": lambda status: status.assert_consumed(),
    "existing": lambda status: status.assert_existing_objects_matched(),
    "nontrivial": lambda status: status.assert_nontrivial_match(),
}


def zeros(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2) for name in names}


def status(tmp_path: Path, there: list[str], here: list[str]) -> LoadStatus:
    path = Checkpoint(**zeros(*there)).write(tmp_path / "m")
    return Checkpoint(**zeros(*here)).read(path).expect_partial()


@pytest.mark.parametrize(
    ("there", "here", "passing"),
    [
        (["a", "b"], ["a", "b"], {"consumed", "existing", "nontrivial"}),
        (["a", "b"], ["a"], {"existing", "nontrivial"}),
        (["a"], ["a", "b"], {"nontrivial"}),
        (["a"], ["b"], set()),
        (["a"], [], {"existing"}),
        ([], ["a"], set()),
        ([], [], {"consumed", "existing"}),
    ],
    ids=["same", "more there", "more here", "nothing in common", "nothing here", "nothing there", "nothing"],
)
def test_which_asserts_hold(tmp_path: Path, there: list[str], here: list[str], passing: set[str]) -> None:
    """consumed: all of both; existing: all objects here; nontrivial: any. Each returns the status."""
    found = status(tmp_path, there, here)
    assert isinstance(found, CheckpointLoadStatus)
    for name, assertion in ASSERTS.items():
        if name in passing:
            assert assertion(found) is found
        else:
            with pytest.raises(AssertionError):
                assertion(found)


def test_the_message_for_unused_values(tmp_path: Path) -> None:
    """It has the object, the file and the keys."""
    with pytest.raises(AssertionError) as caught:
        status(tmp_path, ["a", "b"], ["a"]).assert_consumed()
    text = str(caught.value)
    assert "Unresolved object in checkpoint (root).b" in text
    assert str(tmp_path / "m") in text
    assert "b/.ATTRIBUTES/VARIABLE_VALUE" in text


def test_the_message_for_objects_without_values(tmp_path: Path) -> None:
    """It has the number of objects, and the names of the first ten."""
    names = [f"v{i:02}" for i in range(12)]
    with pytest.raises(AssertionError) as caught:
        status(tmp_path, ["a"], ["a", *names]).assert_existing_objects_matched()
    text = str(caught.value)
    assert "Found 12 Python objects" in text
    assert "Showing 10 of 12" in text
    assert "(root).v00 (named v00)" in text
    assert "v10" not in text


def test_the_message_for_no_match(tmp_path: Path) -> None:
    """It says that only the root was matched and lists the others, or that there was nothing to match."""
    with pytest.raises(AssertionError, match=r"Nothing except the root.*\(root\)\.b"):
        status(tmp_path, ["a"], ["b"]).assert_nontrivial_match()
    with pytest.raises(AssertionError, match="Nothing to load"):
        status(tmp_path, [], []).assert_nontrivial_match()


def test_the_message_for_a_waiting_optimizer(tmp_path: Path) -> None:
    """Without its parameters the optimizer is named; once it is deleted, its slots are."""
    model = nn.Linear(1, 1)
    path = Checkpoint(m=model, o=torch.optim.SGD(model.parameters(), 0.1)).write(tmp_path / "m")
    checkpoint = Checkpoint(m=model, o=torch.optim.SGD([torch.zeros(1)], 0.1))
    found = checkpoint.read(path).expect_partial()
    with pytest.raises(AssertionError, match=r"Unresolved slot restorations in .*: \(root\)\.o\."):
        found.assert_consumed()


def test_the_asserts_use_the_current_objects(tmp_path: Path) -> None:
    """Objects added after the restore count, on both sides."""
    path = Checkpoint(m=nn.Linear(1, 1)).write(tmp_path / "m")
    module = nn.Module()
    found = Checkpoint(m=module).read(path)
    with pytest.raises(AssertionError):
        found.assert_consumed()
    module.weight, module.bias = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1))
    found.assert_consumed()
    module.more = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match=r"\(root\)\.m\.more"):
        found.assert_existing_objects_matched()


def test_an_object_replaced_after_the_restore(tmp_path: Path) -> None:
    """Another object under the same name has no restored values, and the status reports it.

    Once the first object is back, the status passes again.
    """
    module = nn.Linear(1, 1)
    checkpoint = Checkpoint(model=module)
    found = checkpoint.read(checkpoint.write(tmp_path / "m")).assert_consumed()
    checkpoint.model = nn.Linear(1, 1)
    with pytest.raises(AssertionError, match=r"Found \d Python objects.*\(root\)\.model\.weight"):
        found.assert_existing_objects_matched()
    checkpoint.model = module
    found.assert_existing_objects_matched()


def test_a_replaced_parameter(tmp_path: Path) -> None:
    """A replaced parameter has no restored values either, even if the first one is deleted."""
    path = Checkpoint(m=nn.Linear(1, 1)).write(tmp_path / "m")
    module = nn.Linear(1, 1)
    found = Checkpoint(m=module).read(path).assert_consumed()
    module.weight = nn.Parameter(torch.zeros(1, 1))
    with pytest.raises(AssertionError, match=r"\(root\)\.m\.weight"):
        found.assert_existing_objects_matched()


def test_moved_buffers_count(tmp_path: Path) -> None:
    """Module.to() replaces buffers by new tensors, which have the restored values."""
    module = nn.BatchNorm1d(2)
    found = Checkpoint(m=module).read(Checkpoint(m=nn.BatchNorm1d(2)).write(tmp_path / "m"))
    module.double()
    found.assert_consumed()


def test_nothing_was_restored() -> None:
    """Every assert fails; expect_partial has no effect."""
    found = InitializationOnlyStatus()
    for assertion in ASSERTS.values():
        with pytest.raises(AssertionError, match="No checkpoint specified"):
            assertion(found)
    assert found.expect_partial() is found


def test_name_based_checkpoints(tmp_path: Path) -> None:
    """All objects here except the optional one must be in a Saver's file, which may contain more."""
    path = Saver({"a": torch.ones(2), "more": torch.ones(1)}).save(tmp_path / "m")
    assert path is not None
    here = zeros("a", "b")
    root = trackable_of(Checkpoint(**here), "root")
    a, b = identity_of(here["a"]), identity_of(here["b"])
    for assertion in ASSERTS.values():
        assertion(NameBasedSaverStatus(path, root, {a}, b))
        assertion(NameBasedSaverStatus(path, root, {a, b}, None))
    for name in ("consumed", "existing"):
        with pytest.raises(AssertionError, match=rf"1 object could not be restored .*{path}: \(root\)\.b \(named b\)"):
            ASSERTS[name](NameBasedSaverStatus(path, root, {a}, None))
    with pytest.raises(AssertionError, match="No object was found by its name"):
        NameBasedSaverStatus(path, root, set(), None).assert_nontrivial_match()
