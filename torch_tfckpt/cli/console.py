"""Output of the command line: results to stdout, messages to stderr, no terminal control characters.

Guaranteed: text from files, file names or arguments is printed as printable characters and line ends only, in results,
errors, log records and warnings. JSON escapes all characters that are not ASCII.
"""

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from torch_tfckpt import text as names
from torch_tfckpt.errors import NO_MATCHING_FILES, CheckpointError

# Parameters of Python functions, as errors name them, and the options that set them.
_OPTIONS: Final[Mapping[str, str]] = {
    "allow_missing_files": "--allow-missing",
    "atol": "--atol",
    "check": "--check",
    "clamp": "--clamp",
    "dtype": "--dtype",
    "ema": "--ema",
    "exclude": "--exclude",
    "include": "--include",
    "infer": "--infer",
    "last": "--last",
    "map": "--map",
    "max_shard_size": "--max-shard-size",
    "names": "--names",
    "newest": "--newest",
    "optimizer": "--optimizer",
    "preset": "--preset",
    "rename": "--rename",
    "report": "--report",
    "rules": "--rules",
    "scope": "--scope",
    "skip_damaged": "--skip-damaged",
    "strict": "--no-strict",
    "tags": "--tags",
    "to": "--to",
    "to_tf": "--to-tf",
    "to_torch": "--to-torch",
    "weights_only": "--weights-only",
}
_ANY: Final = "|".join(_OPTIONS)
_LONG: Final = "|".join(name for name in _OPTIONS if "_" in name)  # never ordinary words
# Skips quoted names and calls. Finds for example: atol=-1, ema="prefer", include "x", `tags`, max_shard_size.
_PARAMETER: Final = re.compile(
    rf"""(?P<skipped>"[^"]*"|\w\([^()]+\))|(?<![\w/.=-])"""
    rf"""(?:(?P<set>{_ANY})=(?P<value>"[^"\s]*"|[^\s:)]+)|(?P<listed>include|exclude|newest|rename)(?=[ ]")|"""
    rf"""(?P<word>{_LONG})(?![\w/.=-])|`(?P<code>{_ANY})`)"""
)


def escaped(text: str) -> str:
    """Escape control characters and lone surrogates, which could control a terminal or fail to encode."""
    return names.escaped(text, limit=len(text))


def prepare_streams() -> None:
    """Escape characters that stdout and stderr cannot encode; discard output if they are closed (`>&-`)."""
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a message on stderr. Only "\\n" ends a line; all other control characters are escaped."""
    print("\n".join(map(escaped, text.rstrip("\n").split("\n"))), file=sys.stderr)


@contextmanager
def escaped_messages() -> Iterator[None]:
    """Inside the `with` block, escape log records and warnings, like other messages.

    Programs that have set up their own logging handlers get the records as before.
    """
    last_resort = logging.lastResort
    logging.lastResort = _Handler(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            yield
    finally:
        logging.lastResort = last_resort


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _say_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    say(f"{category.__name__}: {message}")


def error_text(error: CheckpointError) -> str:
    """Return the message of an error for users of the command line.

    The result names options instead of the parameters of Python functions, and omits the phrase that errors contain
    only for programs that search messages for it.
    """
    return option_text(str(error).replace(NO_MATCHING_FILES, ""))


def option_text(text: str) -> str:
    """Return a message of the library that names options instead of the parameters of Python functions."""
    return _PARAMETER.sub(_as_option, text)


def _as_option(found: re.Match[str]) -> str:
    if found["skipped"]:
        return found[0]
    if found["set"]:
        value = found["value"].strip('"')
        bare = value.rstrip(",;.")
        return _OPTIONS[found["set"]] + ("" if bare in ("True", "False") else f" {bare}") + value[len(bare) :]
    if found["code"]:
        return f"`{_OPTIONS[found['code']]}`"
    return _OPTIONS[found["listed"] or found["word"]]


def show(text: str) -> None:
    """Print a result on stdout."""
    print("\n".join(map(escaped, text.rstrip("\n").split("\n"))))


def show_json(content: Any) -> None:
    """Print a result as JSON on stdout."""
    print(json.dumps(content, indent=2))
