"""Paths that are not checkpoints: directories, pipes, loops, git-lfs pointers, nonsensical state files."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from claims import assert_helps, assert_right, within
from samples import SAMPLES, Sample, v1, v2_plain

import torch_tfckpt as tfckpt

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return v2_plain(tmp_path)


def assert_refused(path: Path | str, *places: str) -> tfckpt.CheckpointError:
    """Assert that using the path raises a helpful CheckpointError, soon."""
    with within(), pytest.raises(tfckpt.CheckpointError) as raised:
        tfckpt.load_checkpoint(path)
    assert_helps(raised.value, *places, str(path), os.path.basename(path))
    return raised.value


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_text(path: Path) -> None:
    path.write_text("not a checkpoint\n" * 100)


def make_pointer(path: Path) -> None:
    path.write_bytes(LFS)


def make_noise(path: Path) -> None:
    path.write_bytes(random.Random(3).randbytes(100_000))


THINGS: list[Callable[[Path], None]] = [
    Path.mkdir, make_empty, make_pipe, make_loop, make_dangling, make_device, make_text, make_pointer, make_noise,
]  # fmt: skip


def put(make: Callable[[Path], None], path: Path) -> None:
    path.unlink(missing_ok=True)
    make(path)


@pytest.mark.parametrize("make", THINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("spelling", ["", ".index", ".data-00000-of-00001", ".meta"])
def test_something_else_in_place_of_the_index(make: Callable[[Path], None], spelling: str, sample: Sample) -> None:
    """The error is the same whichever file of the checkpoint is named."""
    put(make, sample.files[0])
    error = assert_refused(f"{sample.path}{spelling}", "plain")
    if make is make_pointer:
        assert "git lfs pull" in str(error)


@pytest.mark.parametrize("make", THINGS, ids=lambda make: make.__name__)
def test_something_else_in_place_of_the_data(make: Callable[[Path], None], sample: Sample) -> None:
    """The checkpoint opens and lists; tensors with bytes are refused, and check() reports them."""
    put(make, sample.files[1])
    with within(), tfckpt.load_checkpoint(sample.path) as reader:
        assert reader.keys() == list(sample.values)
        for name in set(sample.values) - {"empty"}:
            for read in (reader.get_tensor, reader.map_tensor, reader.get_stored_bytes):
                with pytest.raises(tfckpt.CheckpointError) as raised:
                    read(name)
                assert_helps(raised.value, sample.files[1].name)
                if make is make_pointer:
                    assert "git lfs pull" in str(raised.value)
        assert set(reader.check().damaged) >= set(sample.values) - {"empty"}


@pytest.mark.parametrize("make", THINGS, ids=lambda make: make.__name__)
def test_something_else_in_place_of_a_version_1_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Including a directory, which then contains no checkpoint."""
    path = v1(tmp_path).path
    put(make, path)
    error = assert_refused(path)
    if make is make_pointer:
        assert "git lfs pull" in str(error)


@pytest.mark.parametrize("make", THINGS, ids=lambda make: make.__name__)
def test_something_else_in_place_of_a_state_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Neither the directory nor the state file itself leads to a checkpoint."""
    make(tmp_path / "checkpoint")
    assert_refused(tmp_path, "checkpoint")
    assert_refused(tmp_path / "checkpoint", "checkpoint")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(random.Random(5).randbytes(3000), id="noise"),
        pytest.param(random.Random(5).randbytes(10_000_000), id="10 MB of noise"),
        pytest.param(b"a" * 10_000_000, id="one word of 10 MB"),
        pytest.param(b"model_checkpoint_path: \"" + b"\\" * 1_000_000, id="a string that never ends"),
        pytest.param(b"x {" * 100_000, id="deep nesting"),
        pytest.param(b"model_checkpoint_path: {" * 100_000, id="deep nesting of a string"),
        pytest.param(b"all_model_checkpoint_paths: \"m\"\n" * 300_000, id="10 MB of other paths"),
        pytest.param(bytes(20_000_000), id="20 MB of zeros"),
        pytest.param(b"model_checkpoint_path: \"\"", id="empty path"),
        pytest.param(b"model_checkpoint_path: 17", id="a number"),
        pytest.param(b"model_checkpoint_path: \"plain\"\nmodel_checkpoint_path: \"plain\"", id="two paths"),
        pytest.param(b"model_checkpoint_path: \"gone\"", id="a path that does not exist"),
        pytest.param(b"model_checkpoint_path: \"pla\\000in\"", id="NUL"),
        pytest.param(b"model_checkpoint_path: \"x\\000y/pla*\"", id="NUL in a directory of a pattern"),
        pytest.param(b"model_checkpoint_path: \"\\377\\376\"", id="not UTF-8"),
        pytest.param(b"model_checkpoint_path: \"\\ud800\"", id="a surrogate"),
        pytest.param(b"model_checkpoint_path: \"" + b"d/" * 100_000 + b"x\"", id="a path of 200,000 characters"),
        pytest.param(b"model_checkpoint_path: \"" + b"d" * 5000 + b"/x*\"", id="a directory name of 5,000 characters"),
        pytest.param(b"model_checkpoint_path: \"line\\nbreak\"", id="a line break"),
    ],
)  # fmt: skip
def test_a_nonsensical_state_file_is_refused(content: bytes, sample: Sample) -> None:
    """Refused at once, although the directory contains a valid checkpoint: we do not guess which one is meant."""
    folder = sample.path.parent
    (folder / "checkpoint").write_bytes(content)
    assert_refused(folder, "checkpoint", str(folder))
    assert_refused(folder / "checkpoint", "checkpoint", str(folder))


NAMED = ["checkpoint", ".", "..", "./checkpoint", "saved_model.pb", "", "/", "checkpoint.index", "../folder", "*", "?"]


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("with_saved_model", [False, True])
def test_a_state_file_that_refers_to_itself(named: str, with_saved_model: bool, tmp_path: Path) -> None:
    """To itself, its directory, or a parent directory: an error, not an endless loop."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    if with_saved_model:
        (folder / "saved_model.pb").write_bytes(b"")
    assert_refused(folder, "checkpoint", "folder")
    assert_refused(folder / "checkpoint", "checkpoint", "folder")
    if with_saved_model:
        assert_refused(folder / "saved_model.pb", "checkpoint", "folder")


def test_state_files_that_refer_to_each_other(tmp_path: Path) -> None:
    """a/checkpoint -> b/checkpoint -> a/checkpoint."""
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / "checkpoint").write_text(f'model_checkpoint_path: "../{other}/checkpoint"\n')
    assert_refused(tmp_path / "a", "checkpoint")


@pytest.mark.parametrize("named", ["../../plain", "../../../{0}/plain", "sub/../../../plain", "{1}/plain"])
def test_a_state_file_may_refer_to_another_directory(named: str, tmp_path: Path) -> None:
    """A relative path with ".." is resolved from the state file's directory; a missing target is an error."""
    sample = v2_plain(tmp_path)
    folder = tmp_path / "one" / "two"
    (folder / "sub").mkdir(parents=True)
    named = named.format(tmp_path.name, tmp_path)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    assert_right(tfckpt.load_file(folder), sample.values)
    (folder / "checkpoint").write_text('model_checkpoint_path: "../../../../../../../../../../../../../plain"\n')
    assert_refused(folder, "checkpoint")


def test_the_error_for_a_lone_meta_file_explains_it(tmp_path: Path) -> None:
    (tmp_path / "model.meta").write_bytes(b"\x0a\x02\x08\x01")
    error = assert_refused(tmp_path / "model.meta")
    assert "graph" in str(error)
    assert_refused(tmp_path / "model")


def test_an_index_without_data_files_can_be_listed(sample: Sample) -> None:
    """Names and shapes need no data; the error for values names the missing file."""
    sample.files[1].unlink()
    with tfckpt.load_checkpoint(sample.path) as reader:
        assert reader.keys() == list(sample.values)
        with pytest.raises(tfckpt.NotFoundError) as raised:
            reader.get_tensor("matrix")
        assert_helps(raised.value, sample.files[1].name)


@pytest.mark.parametrize(
    "path",
    [
        "nowhere", "no/where/at/all", "x" * 5000, f"{'x' * 5000}/y", f"{'x' * 300}/y", "d/" * 3000, "a\nb", "a\nb/c\nd",
        "*", "[", "[a-", "?" * 200, "*/" * 50 + "x", "\udcff", "\udcff/\udcff", " ", "~", "-", "nowhere.index",
        "nowhere.data-00000-of-00001", "nowhere-00000-of-00002", "nowhere-?????-of-00002", "nowhere.meta", "x" * 250,
    ],
    ids=lambda path: ascii(path[:20]),
)  # fmt: skip
def test_missing_paths_are_not_found(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NotFoundError for relative and absolute paths, with and without other checkpoints in the directory."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        for spelling in (path, os.path.join(tmp_path, path)):
            with within(), pytest.raises(tfckpt.CheckpointError) as raised:
                tfckpt.load_checkpoint(spelling)
            assert len(str(raised.value)) < 40_000
        v2_plain(tmp_path)
        (tmp_path / "plain.index").rename(tmp_path / "other.index")
        v2_plain(tmp_path)


@pytest.mark.parametrize(
    "path", ["", "\0", "a\0b", "\ud800", "a/\ud800/b", "file://", b"", b"\0", 17, None, 1.5, ["x"]]
)
def test_invalid_paths_are_refused(path: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """InvalidArgumentError for each; nothing is written anywhere."""
    monkeypatch.chdir(tmp_path)
    calls: list[Callable[[Any], object]] = [tfckpt.load_checkpoint, tfckpt.load_file, tfckpt.list_variables]
    for call in calls:
        with within(), pytest.raises(tfckpt.CheckpointError) as raised:
            call(path)
        assert isinstance(raised.value, tfckpt.InvalidArgumentError | tfckpt.NotFoundError)
        assert str(raised.value).isprintable()
    with pytest.raises(tfckpt.CheckpointError):
        tfckpt.save_file({"a": torch.ones(1)}, path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [3, None, b"matrix", 1.5, ("matrix",), ["matrix"]])
@pytest.mark.parametrize("kind", SAMPLES)
def test_invalid_names_are_refused(name: object, kind: str, tmp_path: Path) -> None:
    """Not in the checkpoint; reading it raises our error or Python's own TypeError."""
    with tfckpt.load_checkpoint(SAMPLES[kind](tmp_path).path) as reader:
        assert name not in reader
        with pytest.raises((tfckpt.CheckpointError, TypeError)):
            reader.get_tensor(name)  # type: ignore[call-overload]


def test_a_directory_with_many_files_is_searched_once(tmp_path: Path) -> None:
    """20,000 files and a misspelled name: the error comes soon and is short."""
    for number in range(20_000):
        (tmp_path / f"model.ckpt-{number:05d}.index").touch()
    assert len(str(assert_refused(tmp_path / "model.ckpt-1000"))) < 2000
    assert len(str(assert_refused(tmp_path))) < 2000


def test_version_1_shards_with_absurd_counts(tmp_path: Path) -> None:
    """Names with absurd counts, sets that lack shards or have two counts."""
    path = v1(tmp_path).path
    content = path.read_bytes()
    for name in ("m-00000-of-00000", "m-00005-of-00002", "m-99999-of-99999", "m-00000-of-" + "9" * 30):
        (tmp_path / name).write_bytes(content)
    with within(), pytest.raises(tfckpt.CheckpointError):
        tfckpt.load_checkpoint(tmp_path / "m")
