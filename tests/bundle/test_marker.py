"""Marker: from its creation to its end a save can be told from what a killed one left."""

from pathlib import Path
from typing import cast

import pytest

from torch_tfckpt.bundle.publish import Marker, remove
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import parse_temporary_name
from torch_tfckpt.storage.protocol import Storage


def only_file(folder: Path) -> str:
    (path,) = folder.iterdir()
    return str(path)


def test_a_marker_is_named_like_an_unfinished_index_and_in_use(tmp_path: Path) -> None:
    """It bears the number that all files of the save bear."""
    marker = Marker(LOCAL, str(tmp_path / "m-1"))
    temporary = parse_temporary_name(only_file(tmp_path))
    assert temporary == (str(tmp_path / "m-1.index"), marker.save)
    assert LOCAL.in_use(only_file(tmp_path))
    assert Marker(LOCAL, str(tmp_path / "m-2")).save != marker.save


def test_a_clean_end_leaves_nothing(tmp_path: Path) -> None:
    """Ending twice is fine, whatever is said the second time."""
    marker = Marker(LOCAL, str(tmp_path / "m"))
    marker.end(clean=True)
    assert list(tmp_path.iterdir()) == []
    marker.end(clean=False)
    assert list(tmp_path.iterdir()) == []


def test_an_end_that_is_not_clean_leaves_a_sign(tmp_path: Path) -> None:
    """The file stays, in use by nobody, for the next save to clear up; a clean end does not take it back."""
    marker = Marker(LOCAL, str(tmp_path / "m"))
    marker.end(clean=False)
    marker.end(clean=True)
    assert not LOCAL.in_use(only_file(tmp_path))


def test_the_file_is_removed_before_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two somebody else would take the files of a save that is being ended for leftovers."""
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


def test_a_file_that_cannot_be_removed_is_closed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error, and with Ctrl-C, which comes out."""
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


def test_where_files_appear_whole_there_is_none() -> None:
    """Object stores: nothing is temporary there, and nobody can tell what is in use."""

    class Objects:
        renames = False

    Marker(cast(Storage, Objects()), "memory://m").end(clean=True)


def test_remove_says_whether_it_could(tmp_path: Path) -> None:
    """Also of what is not there; never an error."""
    assert remove(LOCAL, str(tmp_path / "none"))
    assert not remove(LOCAL, str(tmp_path))
