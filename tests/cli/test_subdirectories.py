"""show, ls and latest on a directory whose checkpoints are in its subdirectories."""

import json
import os
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.cli import subdirectories
from torch_tfckpt.cli.main import main
from torch_tfckpt.cli.subdirectories import checkpoints_below

Output = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs 2 and 10 with a `checkpoint` file, and one without it a level deeper; data next to them."""
    runs = tmp_path / "runs"
    for name, steps in (("run2", 3), ("run10", 1)):
        saver = tfckpt.Saver({"v": torch.zeros(1)})
        (runs / name).mkdir(parents=True)
        for step in range(steps):
            saver.save(runs / name / "m", step)
    tfckpt.save_file({"v": torch.zeros(1)}, runs / "old" / "best" / "m")
    (runs / "data").mkdir()
    (runs / "data" / "notes.txt").write_text("hello")
    return runs


def test_show_lists_them_with_counts(runs: Path, capsys: Output) -> None:
    """In natural order, with the next command; status 0, since one of them can be shown."""
    assert main(["show", str(runs)]) == 0
    assert capsys.readouterr() == (
        f"{runs}: a directory without a checkpoint of its own, but with checkpoints in 3 subdirectories:\n"
        f"  {runs}/old/best: 1 checkpoint\n"
        f"  {runs}/run2: 3 checkpoints\n"
        f"  {runs}/run10: 1 checkpoint\n"
        f"Pass one of them, as in `tfckpt show {runs}/old/best`.\n",
        "",
    )
    assert main(["show", f"{runs}/old/best"]) == 0


def test_show_as_json(runs: Path, capsys: Output) -> None:
    assert main(["show", str(runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["supported"] and found["files"][1] == f"{runs}/run2: 3 checkpoints"


def test_files_that_can_be_read_are_listed_too(runs: Path, capsys: Output) -> None:
    tfckpt.convert(runs / "run2", runs / "m.npz")
    (runs / "notes.txt").write_text("hello")
    assert main(["show", str(runs)]) == 0
    out = capsys.readouterr().out
    assert f"  {runs}/m.npz: " in out and "notes.txt" not in out


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--tree"], ["show"]])
def test_other_ways_to_open_it(runs: Path, arguments: list[str], capsys: Output) -> None:
    """The error that there is no checkpoint names them, and a command that works."""
    assert main([*arguments, str(runs), *(["v"] if arguments == ["show"] else [])]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith(
        f"There is no checkpoint in this directory. There are checkpoints in subdirectories ({runs}/old/best: 1 "
        f"checkpoint, {runs}/run2: 3 checkpoints, {runs}/run10: 1 checkpoint): pass one of them, as in "
        f"`tfckpt ls {runs}/old/best`\n"
    )
    assert main(["ls", f"{runs}/old/best"]) == 0


@pytest.mark.parametrize(
    ("options", "finding"),
    [([], 'there is no valid "checkpoint" file'), (["--valid"], "there is no complete checkpoint")],
)
def test_latest(runs: Path, options: list[str], finding: str, capsys: Output) -> None:
    (runs / "old").rename(runs / "z")
    assert main(["latest", *options, str(runs)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == (
        f"tfckpt: {runs}: {finding}. There are checkpoints in subdirectories ({runs}/run2: 3 checkpoints, "
        f"{runs}/run10: 1 checkpoint, {runs}/z/best: 1 checkpoint): pass one of them, as in "
        f"`tfckpt latest {runs}/run2`\n"
    )
    assert main(["latest", f"{runs}/run2"]) == 0


def test_many_are_cut_in_a_sentence(tmp_path: Path, capsys: Output) -> None:
    for number in range(12):
        tfckpt.save_file({"v": torch.zeros(1)}, tmp_path / f"run{number}" / "m")
    assert main(["ls", str(tmp_path)]) == 1
    assert f"{tmp_path}/run4: 1 checkpoint and 7 more)" in capsys.readouterr().err


def test_what_does_not_count(tmp_path: Path, capsys: Output) -> None:
    """Hidden directories and deeper levels are not searched, nor is a directory that has checkpoints itself."""
    for path in (".hidden/m", "a/b/c/m"):
        tfckpt.save_file({"v": torch.zeros(1)}, tmp_path / path)
    assert checkpoints_below(str(tmp_path)) == subdirectories.Subdirectories({}, False)
    assert main(["latest", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("`tfckpt latest --valid` searches for others\n")
    tfckpt.save_file({"v": torch.zeros(1)}, tmp_path / "a" / "m")
    assert list(checkpoints_below(str(tmp_path)).counts) == [f"{tmp_path}/a"]
    tfckpt.save_file({"v": torch.zeros(1)}, tmp_path / "m")
    assert checkpoints_below(str(tmp_path)).counts == {}


def test_a_state_file_alone_and_a_link_to_the_directory_above(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "checkpoint").write_text('model_checkpoint_path: "m-3"\n')
    (tmp_path / "b").symlink_to(tmp_path, target_is_directory=True)
    found = checkpoints_below(str(tmp_path))
    assert found.lines[0] == f"{tmp_path}/a: a `checkpoint` file" and not found.is_cut


def test_a_huge_tree_is_not_searched_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """A limited number of names is read, of each directory and in all; the message says that there may be more."""
    tfckpt.save_file({"v": torch.zeros(1)}, tmp_path / "a" / "m")
    for number in range(30):
        (tmp_path / f"data{number:02}").mkdir()
        for name in range(30):
            (tmp_path / f"data{number:02}" / str(name)).touch()
    assert not checkpoints_below(str(tmp_path)).is_cut
    monkeypatch.setattr(subdirectories, "_IN_ALL", 60)
    read = []
    scandir = os.scandir

    def counting(path: str) -> object:
        read.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    found = checkpoints_below(str(tmp_path))
    assert found.is_cut and found.counts == {f"{tmp_path}/a": 1} and len(read) <= 3
    assert main(["show", str(tmp_path)]) == 0
    assert "Not all of its subdirectories were searched, so there may be more" in capsys.readouterr().out
    assert main(["ls", str(tmp_path)]) == 1
    assert "Not all of its subdirectories were searched, so there may be more" in capsys.readouterr().err


def test_a_directory_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as not searched; the others are found."""
    tfckpt.save_file({"v": torch.zeros(1)}, tmp_path / "a" / "m")
    (tmp_path / "b").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert checkpoints_below(str(tmp_path)) == subdirectories.Subdirectories({f"{tmp_path}/a": 1}, True)
