"""Names of checkpoints, taken literally before they are taken as patterns."""

from pathlib import Path

import pytest

from torch_tfckpt.directory.names import (
    directory_key,
    is_there,
    matching,
    of_version_2,
    path_key,
    prefixes_of,
    same_series,
    spelled_in,
)
from torch_tfckpt.storage.local import LOCAL


@pytest.mark.parametrize("name", ["m[1]", "m*", "m?", "m"])
def test_literal_names_come_first(tmp_path: Path, name: str) -> None:
    """An index or version 1 file with the literal name is found, with any characters in the name."""
    assert not is_there(LOCAL, str(tmp_path / name))
    for file in (f"{name}.index", name):
        (tmp_path / file).touch()
        assert is_there(LOCAL, str(tmp_path / name))
        (tmp_path / file).unlink()


def test_patterns(tmp_path: Path) -> None:
    """Patterns match version 1 files and indexes, but not data files or meta graphs alone."""
    for name in ("m-1.index", "m-1.data-00000-of-00001", "n-00000-of-00002", "n.meta", "o.data-00000-of-00001"):
        (tmp_path / name).touch()
    (tmp_path / "n-11111-of-00002").mkdir()
    found = {pattern: is_there(LOCAL, str(tmp_path / pattern)) for pattern in ("m-*", "m-?", "n-?????-of-00002", "o*")}
    assert found == {"m-*": True, "m-?": True, "n-?????-of-00002": True, "o*": False}
    assert matching(LOCAL, str(tmp_path / "n-*")) == (str(tmp_path / "n-00000-of-00002"),)
    assert matching(LOCAL, str(tmp_path / "n-00000-of-00002")) == ()


def test_prefixes_of_a_listing() -> None:
    """The prefixes of the checkpoints in a listing of files."""
    names = ["a.index", "b.data-00000-of-00001", "c-00000-of-00002", "c-00001-of-00002", "d", "checkpoint", "a.meta"]
    assert prefixes_of(iter(names)) == {"a", "c"}
    assert [name for name in names if not of_version_2(name)] == ["c-00000-of-00002", "c-00001-of-00002", "d"]


def test_keys_of_directories_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spellings of the same directory or path have equal keys; other paths have other keys."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    spellings = ["run", "./run/", "link", str(tmp_path / "run"), "run/../link"]
    assert {directory_key(spelling) for spelling in spellings} == {directory_key("run")} != {directory_key("")}
    assert {path_key(f"{spelling}/m-1") for spelling in spellings} == {path_key("run/m-1")} != {path_key("run/m-2")}
    assert directory_key("") == directory_key(".") == directory_key(str(tmp_path))
    assert directory_key("memory://run/") == directory_key("memory://run") != directory_key("run")
    assert path_key("memory://run/m-1") != path_key("memory://run/m-2")
    assert [spelled_in("link", path) for path in ("run/m-1", str(tmp_path / "run" / "m-1"), "other/m-1")] == [
        "link/m-1",
        "link/m-1",
        "other/m-1",
    ]


def test_series_of_checkpoints() -> None:
    """Names of the same series differ only in their numbers."""
    assert same_series("run/m-1", "other/m-20") and same_series("m-00000001", "m-2")
    assert same_series("m-1-?????-of-00002", "m-2-?????-of-00004")
    assert same_series("epoch3", "epoch12") and same_series("m-1.5", "m-22.0")
    assert not same_series("m", "m-1") and not same_series("n-1", "m-1")
    assert not same_series("gen1-10", "gen2-10"), "two models in one directory"
