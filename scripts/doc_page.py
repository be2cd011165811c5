#!/usr/bin/env python3
"""Run the code blocks of pages of the documentation, as a reader would: in order, in an empty directory.

    python scripts/doc_page.py README.md docs/training.md
    python scripts/doc_page.py --update docs/models.md     # write what the blocks print into the page

Each page runs in a separate process. `python` blocks share one namespace per page. `bash` blocks run line by line; a
line whose comment is "exit status 1" must end with it, all others with 0. A `text` block right after a block is what
that block prints, and must agree. A block below `<!-- not run: REASON -->` is left out. The directory has tests/golden
and tests/keras_files in it, like the root of a clone.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Once, before the processes of the pages are forked; torch._dynamo is what the first step of an optimizer imports.
import torch
import torch._dynamo  # noqa: F401

import torch_tfckpt
from torch_tfckpt.cli.main import main as tfckpt

ROOT: Final = Path(__file__).resolve().parent.parent
_FENCE: Final = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_NOT_RUN: Final = re.compile(r"<!-- not run: .+ -->\s*\Z")
_STATUS: Final = re.compile(r"#.*\bexit status (\d+)")
_QUOTED: Final = re.compile(r"'[^']*'")
_RUN: Final = ("python", "bash")


class PageError(Exception):
    """A block failed, or printed something else than the page says."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    code: str
    line: int  # of its first line of code, from 1
    output: tuple[int, int, str] | None  # where the text block after it begins and ends, and what it says


def blocks_of(text: str) -> Iterator[Block]:
    """The blocks of a page that are run."""
    found = list(_FENCE.finditer(text))
    for at, match in enumerate(found):
        if match[2] not in _RUN or _NOT_RUN.search(text, 0, match.start()):
            continue
        output = None
        following = found[at + 1] if at + 1 < len(found) else None
        if following is not None and following[2] == "text" and not text[match.end() : following.start()].strip():
            output = (following.start(3), following.end(3), following[3])
        indent = len(match[1])
        code = "".join(line[indent:] if line.strip() else line for line in match[3].splitlines(keepends=True))
        yield Block(match[2], code, text.count("\n", 0, match.start(3)) + 1, output)


def run_page(page: Path, *, update: bool = False) -> int:
    """Run every block of a page in a new directory; return how many there are.

    Raises:
        PageError: a block failed or printed something else; the message has file and line.
    """
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    edits: list[tuple[int, int, str]] = []
    count = 0
    with tempfile.TemporaryDirectory(prefix="doc-page-") as name:
        (Path(name) / "tests").mkdir()
        (Path(name) / "tests" / "golden").symlink_to(ROOT / "tests" / "golden")
        (Path(name) / "tests" / "keras_files").symlink_to(ROOT / "tests" / "keras_files")
        with contextlib.chdir(name):
            for block in blocks_of(text):
                count += 1
                place = f"{page}, line {block.line}"
                printed = (
                    _run_python(block, place, namespace) if block.language == "python" else _run_shell(block, place)
                )
                if block.output is None:
                    continue
                begin, end, expected = block.output
                if update:
                    edits.append((begin, end, printed))
                elif printed != _trimmed(expected):
                    raise PageError(f"{place}: the block prints\n{printed}\nand the page says\n{expected}")
    for begin, end, printed in reversed(edits):
        text = text[:begin] + printed + text[end:]
    if edits:
        page.write_text(text, encoding="utf-8")
    return count


def _run_python(block: Block, place: str, namespace: dict[str, Any]) -> str:
    output = io.StringIO()
    # Line numbers of a traceback are those of the page.
    source = "\n" * (block.line - 1) + block.code
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            exec(compile(source, place.partition(",")[0], "exec"), namespace)
    except BaseException as error:
        raise PageError(f"{place}: {output.getvalue()}{traceback.format_exc()}") from error
    return _trimmed(output.getvalue())


def _run_shell(block: Block, place: str) -> str:
    printed = ""
    for line in block.code.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        status, output = _run_command(line)
        printed += output
        wanted = _STATUS.search(line)
        if status != (int(wanted[1]) if wanted else 0):
            raise PageError(f"{place}: exit status {status} of: {line}\n{output}")
    return _trimmed(printed)


def _run_command(line: str) -> tuple[int, str]:
    """Exit status, and what it prints on both streams. A plain tfckpt command is run here, without another import."""
    plain = not re.search(r"[|&;<>$`*?(){}~\"\\]", _QUOTED.sub("", line.partition("#")[0]))
    words = shlex.split(line, comments=True) if plain else []
    if words[:1] == ["tfckpt"]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = tfckpt(words[1:])
        return status, output.getvalue()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", line], text=True, env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def _trimmed(output: str) -> str:
    """Without spaces at the ends of lines and empty lines at the end."""
    lines = "\n".join(line.rstrip() for line in output.splitlines()).strip("\n")
    return f"{lines}\n" if lines else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--update", action="store_true", help="rewrite the text blocks with what is printed")
    options = parser.parse_args(arguments)
    warnings.simplefilter("error")
    for name in torch_tfckpt.__all__:
        getattr(torch_tfckpt, name)
    statuses = [run_apart(page.absolute(), update=options.update) for page in options.pages]
    return int(any(statuses))


def run_apart(page: Path, *, update: bool) -> int:
    """Run a page in a forked process, which inherits the imports of this one; return its exit status."""
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        run_page(page, update=update)
        status = 0
    except PageError as error:
        print(error, file=sys.stderr)
    except Exception:  # os._exit below would hide it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
