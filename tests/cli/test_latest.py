"""tfckpt latest: the path that a script wants, or why there is none."""

import json
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory with two checkpoints, the newer one damaged."""
    saver = tfckpt.Saver({"x": torch.zeros(3)})
    for step in (1, 2):
        saver.save(tmp_path / "m", global_step=step)
    (tmp_path / "m-2.data-00000-of-00001").write_bytes(b"")
    return tmp_path


def test_the_newest_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its path alone on stdout."""
    assert main(["latest", str(run)]) == 0
    assert capsys.readouterr() == (f"{run}/m-2\n", "")


def test_valid_walks_back_to_a_complete_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data file that is too short is passed over."""
    assert main(["latest", "--valid", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/m-1\n"


def test_json_lists_all(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the state file names, oldest first."""
    assert main(["latest", "--json", str(run)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"directory": str(run), "latest": f"{run}/m-2", "listed": [f"{run}/m-1", f"{run}/m-2"]}


@pytest.mark.parametrize("options", [[], ["--valid"], ["--json"]])
def test_an_empty_directory_is_not_fine(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1; nothing on stdout that a script could take for a path."""
    assert main(["latest", *options, str(tmp_path)]) == 1
    printed = capsys.readouterr()
    if options == ["--json"]:
        assert json.loads(printed.out)["latest"] is None
    else:
        assert printed.out == "" and "there is no" in printed.err


def test_another_state_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--latest-filename, as Saver.save has it."""
    tfckpt.Saver({"x": torch.zeros(3)}).save(run / "best", latest_filename="best_checkpoint")
    assert main(["latest", "--latest-filename", "best_checkpoint", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/best\n"
