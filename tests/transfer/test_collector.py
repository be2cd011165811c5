"""The garbage collector while many objects are made: objects from before are left alone, and only during the block."""

import gc
from collections.abc import Iterator

import pytest

from torch_tfckpt.transfer.collector import new_objects_only

MANY = 10_000


@pytest.fixture(autouse=True)
def _nothing_frozen() -> Iterator[None]:
    """Undo what tests/conftest.py does for the whole session."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_many_objects() -> None:
    """Objects from before are hidden during the block, also if an error ends it, and in a block within."""
    with new_objects_only(MANY):
        assert gc.get_freeze_count()
        with new_objects_only(MANY):
            assert gc.get_freeze_count()
        assert gc.get_freeze_count(), "the inner block has ended the outer one"
    assert not gc.get_freeze_count()
    with pytest.raises(KeyError), new_objects_only(MANY):
        raise KeyError
    assert not gc.get_freeze_count()


def test_few_objects() -> None:
    with new_objects_only(MANY - 1):
        assert not gc.get_freeze_count()


def test_what_the_program_has_frozen_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with new_objects_only(MANY):
        pass
    assert gc.get_freeze_count() == frozen
