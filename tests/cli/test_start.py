"""Start of the command: fast, without importing torch unless tensors are read; shell completion."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main

VERBS = ("ls", "show", "verify", "convert", "diff", "latest", "merge", "meta", "run", "compare-model")
# Run the command, then print which of the slow packages it has imported.
PROGRAM = (
    "import json, sys\n"
    "from torch_tfckpt.cli.main import main\n"
    "status = main(sys.argv[1:])\n"
    "print(json.dumps([status, sorted({'torch', 'numpy', 'rich'} & set(sys.modules))]))\n"
)


def start(*arguments: str) -> tuple[int, list[str]]:
    """Return a command's exit status in a new process and the slow packages that it imported."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    status, imported = json.loads(done.stdout.splitlines()[-1])
    return status, imported


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=str)
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    """Neither torch nor numpy nor rich is imported."""
    assert start(*arguments) == (0 if arguments else 2, [])


def test_latest_imports_no_torch(tmp_path: Path) -> None:
    """Only --valid imports torch, to check the files."""
    tfckpt.Saver({"a": torch.zeros(2)}).save(tmp_path / "model.ckpt", write_meta_graph=False)
    assert start("latest", str(tmp_path)) == (0, [])
    status, imported = start("latest", "--valid", str(tmp_path))
    assert status == 0 and "torch" in imported


@pytest.mark.parametrize("option", [[], ["--json"], ["--dot"]])
def test_meta_imports_no_torch(golden: Path, option: list[str]) -> None:
    status, imported = start("meta", str(golden / "digits-cnn" / "model.ckpt-216.meta"), *option)
    assert status == 0 and "torch" not in imported


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tfckpt {tfckpt.__version__}\n"


def test_completion_without_shtab_names_the_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "pip install 'torch-tfckpt[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts_name_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="shtab is not installed")
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ver", "verify"),
        ("convert --max-sh", "--max-shard-size"),
        ("ls --sort si", "size"),
        ("ls mod", "model.ckpt-7.index"),
        ("latest ru", "run"),
    ],
)
def test_completion_in_bash(tmp_path: Path, typed: str, completed: str) -> None:
    """The tab key in an interactive shell that has evaluated the script as the help describes."""
    pytest.importorskip("shtab", reason="shtab is not installed")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    (tmp_path / "model.ckpt-7.index").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "tfckpt").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch_tfckpt "$@"\n')
    (tmp_path / "tfckpt").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb"}
    master, slave = pty.openpty()
    with subprocess.Popen(
        [bash, "--norc", "--noprofile", "-i"],
        cwd=tmp_path, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    ) as shell:  # fmt: skip
        os.close(slave)
        os.write(master, b'eval "$(tfckpt --print-completion bash)"; echo rea""dy\n')
        assert "ready" in read_until(master, "ready\r\n")
        os.write(master, f"tfckpt {typed}\t".encode())
        shown = read_until(master, f"{completed}")
        shell.kill()
    os.close(master)
    assert completed in shown


def read_until(terminal: int, wanted: str) -> str:
    """Return a terminal's output until `wanted` is in it or nothing arrives for half a minute."""
    shown = ""
    deadline = time.monotonic() + 30
    while wanted not in shown and select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            shown += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the shell has exited
            break
    return shown
