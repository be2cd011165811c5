"""tfckpt latest: the path for a script, or the reason why there is none."""

import json
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a directory with two checkpoints, the newer one damaged."""
    saver = tfckpt.Saver({"x": torch.zeros(3)})
    for step in (1, 2):
        saver.save(tmp_path / "m", global_step=step)
    (tmp_path / "m-2.data-00000-of-00001").write_bytes(b"")
    return tmp_path


def test_the_newest_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only its path is on stdout."""
    assert main(["latest", str(run)]) == 0
    assert capsys.readouterr() == (f"{run}/m-2\n", "")


def test_valid_prints_the_newest_complete_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint with a short data file is skipped."""
    assert main(["latest", "--valid", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/m-1\n"


def test_json_lists_all(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All checkpoints in the state file, oldest first."""
    assert main(["latest", "--json", str(run)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"directory": str(run), "latest": f"{run}/m-2", "listed": [f"{run}/m-1", f"{run}/m-2"]}


@pytest.mark.parametrize("options", [[], ["--valid"], ["--json"]])
def test_an_empty_directory_is_an_error(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, with nothing on stdout that a script could mistake for a path."""
    assert main(["latest", *options, str(tmp_path)]) == 1
    printed = capsys.readouterr()
    if options == ["--json"]:
        assert json.loads(printed.out)["latest"] is None
    else:
        assert printed.out == "" and "there is no" in printed.err


def test_another_state_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--latest-filename selects the state file, like the argument of Saver.save."""
    tfckpt.Saver({"x": torch.zeros(3)}).save(run / "best", latest_filename="best_checkpoint")
    assert main(["latest", "--latest-filename", "best_checkpoint", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/best\n"


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("nowhere", "there is no such directory"),
        ("m-1.index", "is not a directory"),
        ("empty", 'there is no valid "checkpoint" file. `tfckpt latest --valid` searches for others'),
        ("gone", "the checkpoint named in its state file does not exist. `tfckpt latest --valid` searches for others"),
    ],
)
def test_the_reason_is_named(run: Path, name: str, finding: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong path, a file, a directory without a state file, and checkpoints that were deleted."""
    (run / "empty").mkdir()
    (run / "gone").mkdir()
    (run / "gone" / "checkpoint").write_text('model_checkpoint_path: "m-3"\n')
    assert main(["latest", str(run / name)]) == 1
    assert capsys.readouterr() == ("", f"tfckpt: {run / name}: {finding}\n")
