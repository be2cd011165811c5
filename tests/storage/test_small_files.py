"""Small files are read whole, up to a limit."""

import os
from pathlib import Path

import pytest

from torch_tfckpt.errors import DataLossError, NotFoundError
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.small_files import read_small


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    """The whole file, even an empty one."""
    for contents in (b"", b"12345678"):
        (tmp_path / "a").write_bytes(contents)
        assert read_small(LOCAL, f"{tmp_path}/a", 8, "a list") == contents


@pytest.mark.parametrize("size", [9, 1 << 40])
def test_a_larger_file_is_refused(tmp_path: Path, size: int) -> None:
    """Before memory is allocated for it: no machine that runs this test has a terabyte."""
    path = tmp_path / "a"
    path.touch()
    os.truncate(path, size)
    with pytest.raises(DataLossError) as raised:
        read_small(LOCAL, str(path), 8, "a list", "Remove it")
    assert str(raised.value) == f"{path}: {size} bytes are too many for a list, which has at most 8. Remove it"


def test_a_missing_file_raises_the_storages_error(tmp_path: Path) -> None:
    """NotFoundError, as from the storage's own `open`."""
    with pytest.raises(NotFoundError):
        read_small(LOCAL, f"{tmp_path}/a", 8, "a list")
