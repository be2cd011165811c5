"""Output of the command line: results to stdout, messages to stderr, nothing that could control a terminal."""

import io
import json
import sys
from typing import Any

from torch_tfckpt import text as names


def escaped(text: str) -> str:
    """Escape control characters and lone surrogates, which could control a terminal or fail to encode."""
    return names.escaped(text, limit=len(text))


def prepare_streams() -> None:
    """Make stdout and stderr escape characters that their encoding lacks, and discard output if closed (`>&-`)."""
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a message on stderr."""
    print("\n".join(map(escaped, text.splitlines())), file=sys.stderr)


def show(text: str) -> None:
    """Print a result on stdout."""
    print("\n".join(map(escaped, text.splitlines())))


def show_json(content: Any) -> None:
    """Print a result as JSON on stdout."""
    print(json.dumps(content, indent=2))
