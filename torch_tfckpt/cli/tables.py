"""Tables and progress bars, laid out by rich on a terminal; aligned columns and no bar in a pipe."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from torch_tfckpt.cli.console import escaped

# rich takes seconds to lay out more rows than this.
_RICH_ROWS: Final = 2000
_GAP: Final = 2  # spaces between columns
_MIN_WIDTH: Final = 16  # a column is never narrowed further
_PART: Final = re.compile(r"[^/._ ]*[/._ ]+|[^/._ ]+")


def at_terminal() -> bool:
    """Return whether results are shown at a terminal. Elsewhere, a program may read them."""
    return sys.stdout.isatty()


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str] = ()) -> None:
    """Print a table.

    Args:
        headings: One per column. The first column has names, the last one notes. In a narrow terminal, both
            are wrapped after "/", ".", "_" or a space; the notes are narrowed first.
        rows: Cells, not yet escaped.
        numeric: Headings of the columns to align on the right.
    """
    cells = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    if at_terminal() and len(cells) <= _RICH_ROWS:
        _show_rich(headings, cells, widths, numeric)
        return
    for row in [list(headings), *cells]:
        line = (
            cell.rjust(width) if heading in numeric else cell.ljust(width)
            for heading, cell, width in zip(headings, row, widths, strict=True)
        )
        print("  ".join(line).rstrip())


def _show_rich(
    headings: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int], numeric: Sequence[str]
) -> None:
    console = Console()
    name_width, note_width = _outer_widths(widths, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numeric else "left", overflow="fold")
    for name, *others in cells:
        others[-1:] = [_broken(note, note_width) for note in others[-1:]]
        table.add_row(*map(Text, (_broken(name, name_width), *others)))  # Text: brackets in a name are not markup
    console.print(table)


def _outer_widths(widths: Sequence[int], available: int) -> tuple[int, int]:
    """Return the widths of the first and the last column, so that all columns fit into the terminal."""
    name, *middle, last = widths if len(widths) > 1 else (*widths, 0)
    free = available - sum(middle) - _GAP * (len(widths) - 1)
    name = min(name, max(_MIN_WIDTH, free - min(last, _MIN_WIDTH)))
    return name, min(last, max(_MIN_WIDTH, free - name))


def _broken(text: str, width: int) -> str:
    """Return `text` in lines of at most `width` characters, broken after separators where possible."""
    lines, line = [], ""
    for part in _PART.findall(text) if len(text) > width else [text]:
        if line and len(line) + len(part) > width:
            lines.append(line)
            line = ""
        line += part
    return "\n".join([*lines, line])


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], object] | None]:
    """Show a progress bar on stderr, if it is a terminal.

    Yields:
        A function to call with (bytes done, total bytes); None if nothing is shown.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escaped(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
