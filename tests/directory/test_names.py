"""Names as they are written, and only then as patterns."""

from pathlib import Path

import pytest

from torch_tfckpt.directory.names import is_there, matching, of_version_2, prefixes_of
from torch_tfckpt.storage.local import LOCAL


@pytest.mark.parametrize("name", ["m[1]", "m*", "m?", "m"])
def test_literal_names_come_first(tmp_path: Path, name: str) -> None:
    """Index or version 1 file of that very name: there, whatever signs it holds. TensorFlow misses the first."""
    assert not is_there(LOCAL, str(tmp_path / name))
    for file in (f"{name}.index", name):
        (tmp_path / file).touch()
        assert is_there(LOCAL, str(tmp_path / name))
        (tmp_path / file).unlink()


def test_patterns(tmp_path: Path) -> None:
    """Then of version 1 files, or of indexes; data files and meta graphs alone are no checkpoint."""
    for name in ("m-1.index", "m-1.data-00000-of-00001", "n-00000-of-00002", "n.meta", "o.data-00000-of-00001"):
        (tmp_path / name).touch()
    (tmp_path / "n-11111-of-00002").mkdir()
    found = {pattern: is_there(LOCAL, str(tmp_path / pattern)) for pattern in ("m-*", "m-?", "n-?????-of-00002", "o*")}
    assert found == {"m-*": True, "m-?": True, "n-?????-of-00002": True, "o*": False}
    assert matching(LOCAL, str(tmp_path / "n-*")) == (str(tmp_path / "n-00000-of-00002"),)
    assert matching(LOCAL, str(tmp_path / "n-00000-of-00002")) == ()


def test_what_names_tell() -> None:
    """The checkpoints behind a listing."""
    names = ["a.index", "b.data-00000-of-00001", "c-00000-of-00002", "c-00001-of-00002", "d", "checkpoint", "a.meta"]
    assert prefixes_of(iter(names)) == {"a", "c"}
    assert [name for name in names if not of_version_2(name)] == ["c-00000-of-00002", "c-00001-of-00002", "d"]
