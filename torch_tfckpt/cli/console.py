"""How the command line speaks: results to stdout, messages and progress to stderr, and nothing that harms a terminal.

Tables and bars are for people at a terminal. Into a pipe go plain aligned columns, the same every time.
"""

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from torch_tfckpt import text as names

# Beyond so many rows rich takes seconds to lay a table out, and nobody looks at its borders.
_RICH_ROWS: Final = 2000


def escaped(text: str) -> str:
    """Without control characters and lone surrogates, which could steer a terminal or fail to encode."""
    return names.escaped(text, limit=len(text))


def prepare_streams() -> None:
    """Lets what a stream's encoding lacks come out escaped, and what goes to a closed one (`>&-`) go nowhere."""
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A message to people."""
    print("\n".join(map(escaped, text.splitlines())), file=sys.stderr)


def show(text: str) -> None:
    """A result."""
    print("\n".join(map(escaped, text.splitlines())))


def show_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str] = ()) -> None:
    """Rows of cells, not yet escaped; the columns named in `numeric` are aligned to the right."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and len(cells) <= _RICH_ROWS:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            table.add_column(heading, justify="right" if heading in numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))  # Text: a name with brackets is no markup
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in [list(headings), *cells]:
        line = (
            cell.rjust(width) if heading in numeric else cell.ljust(width)
            for heading, cell, width in zip(headings, row, widths, strict=True)
        )
        print("  ".join(line).rstrip())


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], object] | None]:
    """A bar that is told (bytes done, bytes in all); None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escaped(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
