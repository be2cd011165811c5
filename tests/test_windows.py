"""Windows is refused on import, with one sentence, and every document that names the systems agrees."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SENTENCE = "torch_tfckpt does not run on Windows, which has no flock and no preadv. Use it in WSL 2, which is Linux"


@pytest.mark.parametrize(
    "program",
    [
        "import torch_tfckpt",
        "from torch_tfckpt import Saver",
        "from torch_tfckpt.storage import local",
        "import runpy; runpy.run_module('torch_tfckpt', run_name='__main__')",
    ],
)
def test_importing_on_windows_raises_one_sentence(program: str) -> None:
    """Without the modules that are missing there; nothing else of the package is imported."""
    missing = "".join(f"sys.modules[{name!r}] = None; " for name in ("fcntl", "pwd", "resource"))
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy, sys; {missing}sys.platform = 'win32'; {program}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {SENTENCE}"
    assert "During handling" not in done.stderr


def test_the_documents_agree() -> None:
    """README, the page of the systems, the page of errors, and the classifiers of the package."""
    readme, systems, errors, project = (
        " ".join((REPOSITORY / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "docs/systems.md", "docs/errors.md", "pyproject.toml")
    )
    assert "Windows does not work: `import torch_tfckpt` raises an `ImportError`" in readme
    assert "| Windows | does not work: `import torch_tfckpt` raises `ImportError`" in systems
    assert "does not run on Windows" in errors
    assert re.findall(r'"Operating System :: ([^"]*)"', project) == ["POSIX :: Linux"]
