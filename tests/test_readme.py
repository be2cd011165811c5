"""What README.md shows works, and it lists every public name."""

import re
from pathlib import Path

import pytest

import torch_tfckpt as tfckpt

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block marked python runs as it stands, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_public_name_is_in_the_table() -> None:
    """Nothing is public that the README does not name."""
    table = README.split("## Public names")[1].split("\n## ")[0]
    missing = [name for name in tfckpt.__all__ if f"`{name}" not in table]
    assert missing == []
