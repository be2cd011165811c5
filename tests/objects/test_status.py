"""What statuses say of a restore, and in which words."""

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
    """SAVER 7: consumed: all of both; existing: all that is here; nontrivial: something. Each gives the status back."""
    found = status(tmp_path, there, here)
    assert isinstance(found, CheckpointLoadStatus)
    for name, assertion in ASSERTS.items():
        if name in passing:
            assert assertion(found) is found
        else:
            with pytest.raises(AssertionError):
                assertion(found)


def test_words_for_what_is_missing_here(tmp_path: Path) -> None:
    """The object, the file and the keys."""
    with pytest.raises(AssertionError) as caught:
        status(tmp_path, ["a", "b"], ["a"]).assert_consumed()
    text = str(caught.value)
    assert "Unresolved object in checkpoint (root).b" in text
    assert str(tmp_path / "m") in text
    assert "b/.ATTRIBUTES/VARIABLE_VALUE" in text


def test_words_for_what_is_missing_there(tmp_path: Path) -> None:
    """How many objects there are, and the first ten of them with their names."""
    names = [f"v{i:02}" for i in range(12)]
    with pytest.raises(AssertionError) as caught:
        status(tmp_path, ["a"], ["a", *names]).assert_existing_objects_matched()
    text = str(caught.value)
    assert "Found 12 Python objects" in text
    assert "Showing 10 of 12" in text
    assert "(root).v00 (named v00)" in text
    assert "v10" not in text


def test_words_for_nothing(tmp_path: Path) -> None:
    """That the root alone was matched, and what was not; or that there was nothing to match."""
    with pytest.raises(AssertionError, match=r"Nothing except the root.*\(root\)\.b"):
        status(tmp_path, ["a"], ["b"]).assert_nontrivial_match()
    with pytest.raises(AssertionError, match="Nothing to load"):
        status(tmp_path, [], []).assert_nontrivial_match()


def test_words_for_an_optimizer_that_waits(tmp_path: Path) -> None:
    """None of its parameters are there: the optimizer is named; once it is gone the slots are."""
    model = nn.Linear(1, 1)
    path = Checkpoint(m=model, o=torch.optim.SGD(model.parameters(), 0.1)).write(tmp_path / "m")
    checkpoint = Checkpoint(m=model, o=torch.optim.SGD([torch.zeros(1)], 0.1))
    found = checkpoint.read(path).expect_partial()
    with pytest.raises(AssertionError, match=r"Unresolved slot restorations in .*: \(root\)\.o\."):
        found.assert_consumed()


def test_the_asserts_look_anew(tmp_path: Path) -> None:
    """What came after the restore counts, on both sides."""
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


def test_what_was_replaced_after_the_restore(tmp_path: Path) -> None:
    """Another object under the same name has no values of the checkpoint, and the status says so; with the first one
    back it is well again."""
    module = nn.Linear(1, 1)
    checkpoint = Checkpoint(model=module)
    found = checkpoint.read(checkpoint.write(tmp_path / "m")).assert_consumed()
    checkpoint.model = nn.Linear(1, 1)
    with pytest.raises(AssertionError, match=r"Found \d Python objects.*\(root\)\.model\.weight"):
        found.assert_existing_objects_matched()
    checkpoint.model = module
    found.assert_existing_objects_matched()


def test_a_parameter_that_was_replaced(tmp_path: Path) -> None:
    """The same of a parameter, whose predecessor is gone by then."""
    path = Checkpoint(m=nn.Linear(1, 1)).write(tmp_path / "m")
    module = nn.Linear(1, 1)
    found = Checkpoint(m=module).read(path).assert_consumed()
    module.weight = nn.Parameter(torch.zeros(1, 1))
    with pytest.raises(AssertionError, match=r"\(root\)\.m\.weight"):
        found.assert_existing_objects_matched()


def test_buffers_that_were_moved_count(tmp_path: Path) -> None:
    """Module.to() puts new tensors in the places of buffers; they have the values."""
    module = nn.BatchNorm1d(2)
    found = Checkpoint(m=module).read(Checkpoint(m=nn.BatchNorm1d(2)).write(tmp_path / "m"))
    module.double()
    found.assert_consumed()


def test_nothing_was_restored() -> None:
    """Every assert says so; there is nothing to be partial about."""
    found = InitializationOnlyStatus()
    for assertion in ASSERTS.values():
        with pytest.raises(AssertionError, match="No checkpoint specified"):
            assertion(found)
    assert found.expect_partial() is found


def test_names(tmp_path: Path) -> None:
    """From a Saver's file: what is here must be there, the optional one excepted; the file may have more."""
    path = Saver({"a": torch.ones(2), "more": torch.ones(1)}).save(tmp_path / "m")
    assert path is not None
    here = zeros("a", "b")
    root = trackable_of(Checkpoint(**here), "root")
    a, b = identity_of(here["a"]), identity_of(here["b"])
    for assertion in ASSERTS.values():
        assertion(NameBasedSaverStatus(path, root, {a}, b))
        assertion(NameBasedSaverStatus(path, root, {a, b}, None))
    for name in ("consumed", "existing"):
        with pytest.raises(AssertionError, match=rf"1 objects were not restored .*{path}: \(root\)\.b \(named b\)"):
            ASSERTS[name](NameBasedSaverStatus(path, root, {a}, None))
    with pytest.raises(AssertionError, match="No object was found by its name"):
        NameBasedSaverStatus(path, root, set(), None).assert_nontrivial_match()
