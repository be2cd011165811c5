"""Paths that would create surprising local directories."""

from pathlib import Path

import pytest

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.storage.names import fspath


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/x", "memory://a/b", "http://host/x"])
def test_a_url_that_pathlib_has_changed_is_refused(url: str) -> None:
    """The error contains the URL."""
    with pytest.raises(InvalidArgumentError, match=f'Pass the URL as a str: "{url}"'):
        fspath(Path(url))
    assert fspath(f"./{Path(url)}") == f"./{Path(url)}"


@pytest.mark.parametrize("url", [Path("file:///a/b"), "file:/a/b", "file://localhost/a/b", "file:///a/b"])
def test_file_urls(url: str | Path) -> None:
    """All spellings of a local file's URL, also as pathlib writes it."""
    assert fspath(url) == "/a/b"


def test_a_home_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with the fix, unless a directory has that name; unknown names are plain names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    for path, fixed in (("~/run/m", "/home/me/run/m"), ("$SCRATCH/m", "/scratch/me/m"), ("~", "/home/me")):
        with pytest.raises(InvalidArgumentError, match=f'in this case "{fixed}"'):
            fspath(path)
    assert [fspath(path) for path in ("~nobody-1", "$UNSET/m", "a/~/b")] == ["~nobody-1", "$UNSET/m", "a/~/b"]
    (tmp_path / "~").mkdir()
    assert fspath("~/m") == "~/m"
