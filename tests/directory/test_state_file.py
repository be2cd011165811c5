"""The `checkpoint` state file, compared with TensorFlow's."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorflow_process import TensorFlowError, TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt._proto.checkpoint_state_pb2 import CheckpointState
from torch_tfckpt.directory.state_file import (
    from_stored,
    generate_checkpoint_state_proto,
    get_checkpoint_state,
    read_state,
    to_stored,
    update_checkpoint_state,
    update_relative_state,
)
from torch_tfckpt.storage.local import LOCAL


def state_of(directory: Path | str) -> CheckpointState:
    state = get_checkpoint_state(directory)
    assert state is not None
    return state


def written(directory: Path) -> str:
    return (directory / "checkpoint").read_text(encoding="utf-8")


def save(prefix: Path) -> str:
    return tfckpt.save_file({"x": torch.tensor(1.0)}, prefix)


class TestGenerate:
    @pytest.mark.parametrize("paths", [None, [], ["model-2"]])
    def test_absolute(self, paths: list[str] | None) -> None:
        """CASES 90, 92: absolute paths are kept, the newest is appended, the caller's list is not changed."""
        given = None if paths is None else list(paths)
        state = generate_checkpoint_state_proto("/d", "/d/model-0", paths)
        assert state.model_checkpoint_path == "/d/model-0"
        assert list(state.all_model_checkpoint_paths) == [*(paths or []), "/d/model-0"]
        assert paths == given

    def test_relative(self) -> None:
        """CASES 91: relative paths."""
        state = generate_checkpoint_state_proto("train", "train/model-0")
        assert (state.model_checkpoint_path, list(state.all_model_checkpoint_paths)) == ("model-0", ["model-0"])

    @pytest.mark.parametrize(
        "arguments",
        [
            ("train", "train/m-1", ["train/m-0", "/else/m", "train/m-1"]),
            ("train", "/abs/train/m-1", ["m-0"]),
            ("/abs", "train/m-1", ["/abs/m-0", "x/../m"]),
            ("./train/", "train/m-1", None),
            ("", "m-1", None),
            ("train", "m-1", ["train/m-1"], [1.0, 2.0], 0.5),
            ("/abs", "/abs/m-1", ["/abs/m-1"], [0.1], 1e22),
            ("/abs", "/abs/m-1", ["/abs/m-1"], []),
            ("/abs", "/abs/größe \"\\'\n\x7f", None, [float("inf")]),
        ],
    )  # fmt: skip
    def test_as_tensorflow(self, tensorflow: TensorFlowProcess, arguments: tuple[Any, ...]) -> None:
        """The message equals TensorFlow's for the same arguments, byte for byte."""
        if arguments[0] == "":  # TensorFlow rejects paths relative to ""; ours treats it as "."
            arguments_there: tuple[Any, ...] = (".", *arguments[1:])
        else:
            arguments_there = arguments
        theirs = tensorflow.call("checkpoint_management", "generate_checkpoint_state_proto", *arguments_there)
        assert generate_checkpoint_state_proto(*arguments).SerializeToString() == theirs

    def test_another_number_of_timestamps(self, tensorflow: TensorFlowProcess) -> None:
        """There must be one timestamp per path, or none."""
        arguments: tuple[Any, ...] = ("/d", "/d/m-1", ["/d/m-0", "/d/m-1"], [1.0])
        text = "Checkpoint timestamps, if provided, must match checkpoint paths"
        with pytest.raises(ValueError, match=text):
            generate_checkpoint_state_proto(*arguments)
        with pytest.raises(TensorFlowError, match=text):
            tensorflow.call("checkpoint_management", "generate_checkpoint_state_proto", *arguments)

    def test_urls(self) -> None:
        """A URL is not a relative path: it is shortened only by the URL of its directory."""
        state = generate_checkpoint_state_proto("s3://b/d/", "s3://b/d/m-1", ["s3://other/m-0", "s3://b/d/m-1"])
        assert list(state.all_model_checkpoint_paths) == ["s3://other/m-0", "m-1"]
        assert generate_checkpoint_state_proto("train", "s3://b/m").model_checkpoint_path == "s3://b/m"


class TestUpdate:
    def test_paths_of_all_kinds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """CASES 93: when read, relative paths are joined to the directory as given."""
        monkeypatch.chdir(tmp_path)
        Path("train").mkdir()
        absolute = str(tmp_path / "train" / "model-0")
        update_checkpoint_state("train", "train/model-2", [absolute, "train/model-2"])
        state = state_of("train")
        assert state.model_checkpoint_path == "train/model-2"
        assert list(state.all_model_checkpoint_paths) == [absolute, "train/model-2"]

    def test_relative_paths(self, tmp_path: Path) -> None:
        """CASES 95: the file contains relative paths; absolute ones are returned."""
        newest = str(tmp_path / "model-2")
        update_relative_state(str(tmp_path), newest, ["model-0", newest])
        assert written(tmp_path) == (
            'model_checkpoint_path: "model-2"\n'
            'all_model_checkpoint_paths: "model-0"\nall_model_checkpoint_paths: "model-2"\n'
        )
        assert list(state_of(tmp_path).all_model_checkpoint_paths) == [str(tmp_path / "model-0"), newest]

    def test_absolute_paths_under_a_relative_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are made relative once; TensorFlow does it twice and writes "../m-1"."""
        monkeypatch.chdir(tmp_path)
        Path("train").mkdir()
        update_relative_state("train", str(tmp_path / "train" / "m-1"), ["train/m-0"])
        assert list(state_of("train").all_model_checkpoint_paths) == ["train/m-0", "train/m-1"]

    @pytest.mark.parametrize("name", ["m-1", "größe", 'quo"te', "back\\slash", "new\nline", "tab\t", "\x7f\x01", "'"])
    def test_bytes_equal_tensorflows(self, tmp_path: Path, tensorflow: TensorFlowProcess, name: str) -> None:
        """The file equals TensorFlow's with absolute and relative paths: quoting, UTF-8, doubles."""
        for relative in (False, True):
            path, older, times = str(tmp_path / name), str(tmp_path / "m-0"), [1700000000.123456, 0.1]
            arguments = (str(tmp_path), path, [older, path], None)
            if relative:
                update_relative_state(*arguments, times, 12000.0)
            else:
                update_checkpoint_state(*arguments, times, 12000.0)
            ours = (tmp_path / "checkpoint").read_bytes()
            function = "update_checkpoint_state_internal"
            tensorflow.call("checkpoint_management", function, *arguments, relative, times, 12000.0)
            assert ours == (tmp_path / "checkpoint").read_bytes()
            assert f"{times[0]}".encode() in ours
            assert state_of(tmp_path).model_checkpoint_path == path

    def test_another_name(self, tmp_path: Path) -> None:
        """latest_filename selects the file."""
        update_checkpoint_state(tmp_path, tmp_path / "m", latest_filename="best")
        assert os.listdir(tmp_path) == ["best"]
        assert get_checkpoint_state(tmp_path) is None
        assert get_checkpoint_state(tmp_path, "best") is not None

    def test_the_path_of_the_state_file(self, tmp_path: Path) -> None:
        """A checkpoint with the path of the state file is rejected, and nothing is written."""
        path = str(tmp_path / "checkpoint")
        with pytest.raises(RuntimeError, match=r"Save path .*checkpoint. conflicts with path used for checkpoint stat"):
            update_checkpoint_state(tmp_path, path)
        assert os.listdir(tmp_path) == []

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        """The system's error is raised, as documented."""
        with pytest.raises(FileNotFoundError):
            update_checkpoint_state(tmp_path / "no", tmp_path / "no" / "m")

    def test_no_temporary_file_is_left(self, tmp_path: Path) -> None:
        """The old file is replaced, and no temporary file is left."""
        for number in range(2):
            update_checkpoint_state(tmp_path, tmp_path / f"m-{number}")
        assert os.listdir(tmp_path) == ["checkpoint"]
        assert state_of(tmp_path).model_checkpoint_path == str(tmp_path / "m-1")


class TestGet:
    def test_path_kinds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """CASES 94: PathLike; also bytes, and "" for the working directory."""
        monkeypatch.chdir(tmp_path)
        update_checkpoint_state("", "m-1")
        for directory, expected in (
            (Path(), "./m-1"),
            (b".", "./m-1"),
            ("", "m-1"),
            (str(tmp_path), f"{tmp_path}/m-1"),
        ):
            state = get_checkpoint_state(directory)
            assert state is not None
            assert state.model_checkpoint_path == expected

    def test_empty(self, tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
        """CASES 96: an empty file is an error, as in TensorFlow."""
        (tmp_path / "checkpoint").touch()
        text = f"Invalid checkpoint state loaded from {tmp_path}"
        with pytest.raises(ValueError, match=text):
            get_checkpoint_state(tmp_path)
        with pytest.raises(TensorFlowError, match=text):
            tensorflow.call("checkpoint_management", "get_checkpoint_state", str(tmp_path))

    def test_relative_paths_are_not_normalised(self, tmp_path: Path) -> None:
        """CASES 97: "./" is kept in relative paths."""
        (tmp_path / "checkpoint").write_text(
            'model_checkpoint_path: "./m-5"\nall_model_checkpoint_paths: "./m-4"\nall_model_checkpoint_paths: "./m-5"\n'
        )
        state = state_of(tmp_path)
        assert state.model_checkpoint_path == f"{tmp_path}/./m-5"
        assert list(state.all_model_checkpoint_paths) == [f"{tmp_path}/./m-4", f"{tmp_path}/./m-5"]

    @pytest.mark.parametrize("content", ['unknown: "x"', "model_checkpoint_path: 3", "{{{{", "\udcff\udcfe", "x" * 99])
    def test_damaged(
        self, tmp_path: Path, tensorflow: TensorFlowProcess, caplog: pytest.LogCaptureFixture, content: str
    ) -> None:
        """None with a warning, as in TensorFlow for files that it can decode."""
        raw = content.encode("utf-8", "surrogateescape")
        (tmp_path / "checkpoint").write_bytes(raw)
        with caplog.at_level(logging.WARNING, "torch_tfckpt.directory.state_file"):
            assert get_checkpoint_state(tmp_path) is None
        assert f"{tmp_path}/checkpoint" in caplog.text
        assert "Checkpoint ignored" in caplog.text
        if raw.isascii():
            assert tensorflow.call("checkpoint_management", "get_checkpoint_state", str(tmp_path)) is None

    def test_unreadable(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A directory of that name counts as an unreadable file."""
        (tmp_path / "checkpoint").mkdir()
        assert get_checkpoint_state(tmp_path) is None
        assert "is a directory" in caplog.text

    def test_no_file(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Without the file or its directory the result is None, without a warning."""
        assert get_checkpoint_state(tmp_path) is None
        assert get_checkpoint_state(tmp_path / "no") is None
        assert caplog.text == ""

    def test_a_moved_directory(self, tmp_path: Path) -> None:
        """Absolute paths of another directory are mapped to existing checkpoints of that name here."""
        save(tmp_path / "m-2")
        save(tmp_path / "m-1")
        update_checkpoint_state(tmp_path, "/before/m-2", ["/before/m-0", "/before/m-1", "/before/m-2"])
        state = state_of(tmp_path)
        assert state.model_checkpoint_path == str(tmp_path / "m-2")
        assert list(state.all_model_checkpoint_paths) == ["/before/m-0", f"{tmp_path}/m-1", f"{tmp_path}/m-2"]

    def test_a_copied_directory(self, tmp_path: Path) -> None:
        """A checkpoint next to the state file is used, although the absolute path in it leads to an existing one."""
        (tmp_path / "d").mkdir()
        beside = save(tmp_path / "d" / "m")
        there, alone = save(tmp_path / "m"), save(tmp_path / "alone")
        update_checkpoint_state(tmp_path / "d", there, [alone, there])
        state = state_of(tmp_path / "d")
        assert state.model_checkpoint_path == beside
        assert list(state.all_model_checkpoint_paths) == [alone, beside]

    def test_another_spelling_of_the_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An absolute path into the same directory is returned as it is stored."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "d").mkdir()
        (tmp_path / "link").symlink_to("d")
        path = save(tmp_path / "d" / "m")
        update_checkpoint_state(tmp_path / "d", path)
        assert {state_of(spelling).model_checkpoint_path for spelling in ("d", "link", tmp_path / "link")} == {path}


class TestOtherBytes:
    """File names that are not UTF-8, which strings of a protobuf message cannot contain."""

    def test_round_trip(self, tmp_path: Path) -> None:
        """Written, read and found again, in a directory whose name is not UTF-8 either."""
        directory = os.fsencode(tmp_path) + b"/d\xe9"
        os.mkdir(directory)
        prefix = directory + b"/mod\xff\xfel"
        tfckpt.save_file({"x": torch.tensor(2.0)}, prefix)
        for update in (update_checkpoint_state, update_relative_state):
            update(os.fsdecode(directory), os.fsdecode(prefix), [os.fsdecode(prefix)])
            state = get_checkpoint_state(directory)
            assert state is not None
            assert os.fsencode(from_stored(state.model_checkpoint_path)) == prefix
            assert os.fsencode(from_stored(state.all_model_checkpoint_paths[0])) == prefix
            with tfckpt.load_checkpoint(directory) as reader:
                assert float(reader.get_tensor("x")) == 2.0

    def test_spelling(self, tmp_path: Path) -> None:
        """Bytes outside of UTF-8 are escaped in ASCII; other names are stored unchanged."""
        update_relative_state(str(tmp_path), f"{tmp_path}/mod\udcffel", [])
        assert 'model_checkpoint_path: "mod\\000ffel"\n' in written(tmp_path)
        for path in ("m", "größe", "100%", "a\\000b"):
            assert to_stored(path) == from_stored(path) == path

    def test_raw_bytes(self, tmp_path: Path) -> None:
        """Raw bytes, as another program may have written them, are accepted."""
        (tmp_path / "checkpoint").write_bytes(b'model_checkpoint_path: "mod\xffel"\n')
        assert from_stored(state_of(tmp_path).model_checkpoint_path) == f"{tmp_path}/mod\udcffel"

    @pytest.mark.parametrize("stored", ["\0", "a\0zz", "\x0041"])
    def test_an_invalid_escape(self, tmp_path: Path, stored: str) -> None:
        """A null character that is not an escape is rejected."""
        text = "".join(f"\\{ord(c):03o}" for c in stored)
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{text}"\n')
        with pytest.raises(tfckpt.DataLossError, match="Invalid checkpoint state loaded from"):
            get_checkpoint_state(tmp_path)
        with pytest.raises(tfckpt.DataLossError, match=r"Invalid checkpoint state: .*null character"):
            read_state(LOCAL, str(tmp_path / "checkpoint"))
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "m"\nall_model_checkpoint_paths: "{text}"\n')
        assert list(state_of(tmp_path).all_model_checkpoint_paths) == [stored]
