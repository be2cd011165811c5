"""Output of the command line: results to stdout, messages to stderr, nothing that could control a terminal."""

import io
import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

from torch_tfckpt import text as names
from torch_tfckpt.errors import NO_MATCHING_FILES, CheckpointError

# Parameters of Python functions, as errors name them, and the options that set them.
_OPTIONS: Final[Mapping[str, str]] = {
    "allow_missing_files": "--allow-missing",
    "atol": "--atol",
    "dtype": "--dtype",
    "exclude": "--exclude",
    "include": "--include",
    "max_shard_size": "--max-shard-size",
    "rename": "--rename",
    "skip_damaged": "--skip-damaged",
    "tags": "--tags",
    "to": "--to",
}
_ANY: Final = "|".join(_OPTIONS)
_LONG: Final = "|".join(name for name in _OPTIONS if "_" in name)  # never an ordinary word
# Quoted names are skipped. Then atol=-1, skip_damaged=True, include "x", `tags`, max_shard_size.
_PARAMETER: Final = re.compile(
    rf"""(?P<quoted>"[^"]*")|(?<![\w/.=-])"""
    rf"""(?:(?P<set>{_ANY})=(?P<value>[^\s:]+)|(?P<listed>include|exclude|rename)(?=[ ]")|"""
    rf"""(?P<word>{_LONG})(?![\w/.=-])|`(?P<code>{_ANY})`)"""
)


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


def error_text(error: CheckpointError) -> str:
    """Return the message of an error for users of the command line.

    Options instead of the parameters of Python functions, and without the words that only programs look for.
    """
    return _PARAMETER.sub(_as_option, str(error).replace(NO_MATCHING_FILES, ""))


def _as_option(found: re.Match[str]) -> str:
    if found["quoted"]:
        return found[0]
    if found["set"]:
        value = found["value"]
        return _OPTIONS[found["set"]] + ("" if value == "True" else f" {value}")
    if found["code"]:
        return f"`{_OPTIONS[found['code']]}`"
    return _OPTIONS[found["listed"] or found["word"]]


def show(text: str) -> None:
    """Print a result on stdout."""
    print("\n".join(map(escaped, text.splitlines())))


def show_json(content: Any) -> None:
    """Print a result as JSON on stdout."""
    print(json.dumps(content, indent=2))
