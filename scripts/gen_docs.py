#!/usr/bin/env python3
"""Write the generated parts of the documentation: the command line's page and picture, and printed output.

    python scripts/gen_docs.py            write docs/cli.md and docs/images/tfckpt.svg, and update in all pages the
                                          `text` blocks that show what the block before them prints
    python scripts/gen_docs.py --check    write nothing; exit 1 if the first two are not current

The picture is a terminal drawn by rich. `scripts/doc_page.py PAGE` checks the `text` blocks of one page.
"""

import argparse
import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from doc_page import ROOT, run_apart
from rich.console import Console
from rich.text import Text

from torch_tfckpt.cli.main import main as tfckpt

CLI_PAGE: Final = ROOT / "docs" / "cli.md"
PICTURE: Final = ROOT / "docs" / "images" / "tfckpt.svg"
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
# What the picture shows: commands, run in a directory with a checkpoint of tests/golden in it.
PICTURE_OF: Final = "tensorflow/object"
COMMANDS: Final = (("ls", "--tree", "object"), ("verify", "object"))
COLUMNS: Final = 100
# A font from another server, which a picture should not ask for.
_FONT: Final = re.compile(r" *@font-face \{.*?\}\n", re.DOTALL)
_VERB: Final = re.compile(r"^    ([a-z][a-z-]*)\s", re.MULTILINE)
_INTRODUCTION: Final = """\
# Command line

`tfckpt`, or `python -m torch_tfckpt`. This page is what `--help` prints; `python scripts/gen_docs.py` writes it.
[I inspect checkpoints](start/inspecting.md) has examples.

Results go to stdout, notes and progress to stderr. [Exit status](errors.md#exit-status-of-tfckpt).
"""


def help_of(*arguments: str) -> str:
    """What `tfckpt ... --help` prints on a terminal of 100 columns."""
    output = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        with contextlib.redirect_stdout(output):
            tfckpt([*arguments, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return output.getvalue().rstrip() + "\n"


def cli_page() -> str:
    """The page of the command line."""
    overview = help_of()
    verbs = _VERB.findall(overview)
    sections = [f"## {title}\n\n```text\n{text}```\n" for title, text in (
        ("tfckpt", overview), *((f"tfckpt {verb}", help_of(verb)) for verb in verbs)
    )]  # fmt: skip
    return "\n".join([_INTRODUCTION, *sections])


def picture() -> str:
    """A terminal in which COMMANDS were run, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as name:
        for path in (ROOT / "tests" / "golden" / PICTURE_OF).glob("object.*"):
            (Path(name) / path.name).symlink_to(path)
        for words in COMMANDS:
            console.print(Text("$ tfckpt " + " ".join(words), style="bold green"))
            console.print(Text.from_ansi(on_a_terminal(words, Path(name)).rstrip()))
            console.print()
    return _FONT.sub("", console.export_svg(title="tfckpt", unique_id="tfckpt")).replace("Fira Code, ", "") + "\n"


def on_a_terminal(words: Sequence[str], directory: Path) -> str:
    """What a command prints on a terminal, its colors included."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "torch_tfckpt", *words]
    with os.fdopen(theirs, "wb", buffering=0) as terminal:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env=environment,
        )
    printed = b""
    with os.fdopen(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):  # EIO: the program closed its end
        while data := screen.read(65536):
            printed += data
    if program.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with exit status {program.returncode}")
    return printed.decode().replace("\r\n", "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    stale = False
    for path, text in ((CLI_PAGE, cli_page()), (PICTURE, picture())):
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale = True
        print(f"{path.relative_to(ROOT)}: {'not current; run scripts/gen_docs.py' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    if check:
        return 1 if stale else 0
    statuses = [run_apart(page, update=True) for page in PAGES]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
