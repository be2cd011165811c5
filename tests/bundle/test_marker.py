"""Marker: distinguishes a running save from what a killed one left."""

from pathlib import Path
from typing import cast

import pytest

from torch_tfckpt.bundle.marker import Marker
from torch_tfckpt.bundle.publish import remove
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import parse_temporary_name
from torch_tfckpt.storage.protocol import Storage


def only_file(folder: Path) -> str:
    (path,) = folder.iterdir()
    return str(path)


def test_a_marker_is_named_like_a_temporary_index_and_in_use(tmp_path: Path) -> None:
    """Its name contains the number that is in the names of all files of the save."""
    marker = Marker(LOCAL, str(tmp_path / "m-1"))
    temporary = parse_temporary_name(only_file(tmp_path))
    assert temporary == (str(tmp_path / "m-1.index"), marker.save)
    assert LOCAL.in_use(only_file(tmp_path))
    assert Marker(LOCAL, str(tmp_path / "m-2")).save != marker.save


def test_a_clean_end_leaves_nothing(tmp_path: Path) -> None:
    """It can be ended twice, with any arguments the second time."""
    marker = Marker(LOCAL, str(tmp_path / "m"))
    marker.end(clean=True)
    assert list(tmp_path.iterdir()) == []
    marker.end(clean=False)
    assert list(tmp_path.iterdir()) == []


def test_an_unclean_end_leaves_the_file(tmp_path: Path) -> None:
    """The file stays, not in use, so that the next save cleans up; a later clean end does not remove it."""
    marker = Marker(LOCAL, str(tmp_path / "m"))
    marker.end(clean=False)
    marker.end(clean=True)
    assert not LOCAL.in_use(only_file(tmp_path))


def test_the_file_is_removed_before_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another process might take this save's files for leftovers in between."""
    marker = Marker(LOCAL, str(tmp_path / "m"))
    path = only_file(tmp_path)
    used: list[bool] = []
    removing = LOCAL.remove

    def watched(target: str) -> None:
        used.append(LOCAL.in_use(target))
        removing(target)

    monkeypatch.setattr(LOCAL, "remove", watched)
    marker.end(clean=True)
    assert used == [True] and not Path(path).exists()


def test_a_file_that_cannot_be_removed_is_still_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error and after Ctrl-C, which is raised."""
    for error in (OSError, KeyboardInterrupt):
        marker = Marker(LOCAL, str(tmp_path / error.__name__))
        path = next(str(path) for path in tmp_path.iterdir() if path.name.startswith(error.__name__))

        def refuse(target: str, error: type[BaseException] = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(LOCAL, "remove", refuse)
            if error is OSError:
                marker.end(clean=True)
            else:
                with pytest.raises(KeyboardInterrupt):
                    marker.end(clean=True)
        assert not LOCAL.in_use(path)


def test_object_stores_have_no_marker() -> None:
    """Nothing is temporary there, and use cannot be detected."""

    class Objects:
        renames = False

    Marker(cast(Storage, Objects()), "memory://m").end(clean=True)


def test_remove_returns_whether_it_succeeded(tmp_path: Path) -> None:
    """It also succeeds for missing files, and never raises."""
    assert remove(LOCAL, str(tmp_path / "none"))
    assert not remove(LOCAL, str(tmp_path))
