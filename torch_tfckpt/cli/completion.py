"""Completion in shells: `tfckpt --print-completion bash` prints a script made by shtab.

    eval "$(tfckpt --print-completion bash)"       # in ~/.bashrc; the same for zsh and tcsh

The script completes verbs, options, choices and file names without starting Python.
"""

import argparse
import sys
from typing import Final

SHELLS: Final = ("bash", "zsh", "tcsh")
# Kind of an argument, by its name in the usage line.
_FILES: Final = {"PATH", "FILE", "SRC", "DST", "A", "B"}
_DIRECTORIES: Final = {"DIR"}
_INSTALL: Final = "Completion needs shtab: pip install 'torch-tfckpt[completion]'"


class _PrintCompletion(argparse.Action):
    """Print the script for a shell, and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.error(_INSTALL)
        _mark_paths(parser, files=shtab.FILE, directories=shtab.DIRECTORY)
        sys.stdout.write(shtab.complete(parser, shell=str(values)))
        parser.exit(0)


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the option `--print-completion`."""
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        help="print a shell script that completes verbs, options and files (needs shtab)",
    )


def _mark_paths(parser: argparse.ArgumentParser, files: object, directories: object) -> None:
    """Mark all path arguments, of the parser and its verbs, with shtab's attribute."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _mark_paths(verb, files, directories)
        elif action.metavar in _FILES:
            action.complete = files  # type: ignore[attr-defined]
        elif action.metavar in _DIRECTORIES:
            action.complete = directories  # type: ignore[attr-defined]
