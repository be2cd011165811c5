"""The command line: parser, verbs (one module each for all but merge and diff), and exit status.

Exit status: 0 success; 1 damaged, missing, different or refused; 2 usage error; 130 interrupted; 141 the reader of a
pipe went away. A new verb is a function in a module of this package, and an entry in `_parser`.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from torch_tfckpt.cli import convert, latest, meta, show, tree, verify
from torch_tfckpt.cli.console import prepare_streams, say
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError
from torch_tfckpt.foreign_files.formats import FORMATS
from torch_tfckpt.text import printable

NOT_FINE: Final = 1
WRONG_USE: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells say it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE

_PATHS: Final = """\
A checkpoint is named by its prefix (model.ckpt-1000), any of its files, its directory (the newest in it) or a
SavedModel directory. Where "any format" is said, also: a .safetensors file, a directory or index of several, a .pt or
a .npz file.
"""
_COMING_FROM_TENSORFLOW: Final = """\
Instead of TensorFlow's inspect_checkpoint:
  --file_name F                     tfckpt ls F
  --file_name F --tensor_name N     tfckpt show F N
  --file_name F --all_tensors       tfckpt show F --stats
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    prepare_streams()
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as leave:  # argparse has said why, or has shown its help
        return int(leave.code or 0)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more on its way out; what is left goes nowhere, without a second complaint.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        say("tfckpt: interrupted; nothing was left behind")
        return INTERRUPTED
    except CheckpointError as error:
        say(f"tfckpt: {error}")
        return WRONG_USE if isinstance(error, InvalidArgumentError) else NOT_FINE
    except OSError as error:
        where = f": {printable(os.fsdecode(error.filename))}" if error.filename else ""
        say(f"tfckpt: {error.strerror or error}{where}")
        return NOT_FINE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfckpt",
        description="TensorFlow checkpoints, read, checked, converted and compared without TensorFlow.",
        epilog=f"{_PATHS}\n{_COMING_FROM_TENSORFLOW}\nExit status: 0 fine, 1 the checkpoint is not, 2 wrong use.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for add in (_add_ls, _add_show, _add_verify, _add_convert, _add_diff, _add_latest, _add_merge, _add_meta):
        add(verbs)
    return parser


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], description: str, epilog: str = _PATHS
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=description.partition(".")[0].lower(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run)
    verb.add_argument("-q", "--quiet", action="store_true", help="results and errors only: no progress, no notes")
    return verb


def _add_ls(verbs: Verbs) -> None:
    verb = _add_verb(verbs, "ls", show.ls, "List the tensors: name, type, shape, size. Any format.")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("patterns", metavar="GLOB", nargs="*", help="only names that match one of these, as 'encoder/*'")
    order = verb.add_mutually_exclusive_group()
    order.add_argument("--sort", choices=("name", "size"), help="the default is the order of the file")
    order.add_argument(
        "--tree",
        dest="run",
        action="store_const",
        const=tree.ls_tree,
        help="the objects of an object-based checkpoint, as tf.train.Checkpoint and Keras write, with their tensors",
    )
    verb.add_argument("--all", action="store_true", help="with --tree: also objects that have no tensors below them")
    verb.add_argument("--json", action="store_true", help="one JSON document")


def _add_show(verbs: Verbs) -> None:
    epilog = f"{_PATHS}\n{_COMING_FROM_TENSORFLOW}"
    verb = _add_verb(verbs, "show", show.show_path, "Show a summary, or the values of one tensor. Any format.", epilog)
    verb.add_argument("path", metavar="PATH")
    verb.add_argument(
        "name", metavar="NAME", nargs="?", help="a tensor: its key, or the name of the object or variable it belongs to"
    )
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--stats", action="store_true", help="range, mean, spread and NaNs in place of values")
    form.add_argument("--full", action="store_true", help="all values of NAME, nothing cut; JSON strings are indented")
    verb.add_argument("--json", action="store_true", help="one JSON document; NaN and infinities are strings in it")


def _add_verify(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "verify",
        verify.verify,
        "Read every byte of a TensorFlow checkpoint and hold it against its checksum.",
    )
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("-v", "--verbose", action="store_true", help="name the good tensors too")
    verb.add_argument("--json", action="store_true", help="one JSON document")


def _add_convert(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "convert",
        convert.convert_paths,
        "Convert between TensorFlow checkpoints, .safetensors, .pt and .npz. Names and layouts stay as they are.",
        f"{_PATHS}\nWhat the target cannot hold (strings, variants, TensorFlow's quantized types) goes to a sidecar,\n"
        f"TARGET.tfckpt.json, and comes back when the target is read here again.",
    )
    verb.add_argument("source", metavar="SRC")
    verb.add_argument("target", metavar="DST", help="a file; a prefix with --to tf; a directory with --to safetensors")
    verb.add_argument("--to", choices=FORMATS, help="where the ending of DST does not say it")
    verb.add_argument(
        "--dtype", metavar="TYPE", help="convert floating-point tensors to TYPE: bf16, float16, float32 ..."
    )
    verb.add_argument("--max-shard-size", metavar="SIZE", help="split safetensors into files of at most SIZE: 5GB")
    verb.add_argument(
        "--rename",
        nargs=2,
        action="append",
        default=[],
        metavar=("REGEX", "REPLACEMENT"),
        help="as Python's re.sub, on each name; may be repeated",
    )
    verb.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    verb.add_argument("--json", action="store_true", help="the report as one JSON document")
    _add_selection(verb)


def _add_diff(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs, "diff", convert.diff_paths, "Compare two checkpoints of any format: names, types, shapes, values."
    )
    verb.add_argument("a", metavar="A")
    verb.add_argument("b", metavar="B")
    verb.add_argument(
        "--atol", type=float, default=0.0, metavar="X", help="numbers this close are equal; default: same bits"
    )
    verb.add_argument(
        "--ignore-dtype", action="store_true", help="compare the values of numbers of different types too"
    )
    verb.add_argument("--json", action="store_true", help="one JSON document")
    _add_selection(verb)


def _add_latest(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "latest",
        latest.latest,
        "Print the newest checkpoint of a directory, as its `checkpoint` file names it.",
        "In a script: tfckpt convert $(tfckpt latest --valid run) model.safetensors",
    )
    verb.add_argument("directory", metavar="DIR")
    verb.add_argument("--valid", action="store_true", help="walk back to the newest one whose files are complete")
    verb.add_argument("--latest-filename", metavar="NAME", help="of the state file; the default is checkpoint")
    verb.add_argument("--json", action="store_true", help="one JSON document")


def _add_merge(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "merge",
        convert.merge,
        "Join TensorFlow checkpoints of version 2 into one, by renaming their data files.",
        "SRC and DST are prefixes, as model.ckpt-1000. Without --keep-sources the sources are gone afterwards.",
    )
    verb.add_argument("sources", metavar="SRC", nargs="+", help="a prefix")
    verb.add_argument("target", metavar="DST", help="the prefix of the result")
    verb.add_argument("--keep-sources", action="store_true", help="do not remove the sources afterwards")
    verb.add_argument("--allow-missing", action="store_true", help="pass over sources that are not there")


def _add_meta(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "meta",
        meta.meta,
        "Show a meta graph: versions, operations, variables, collections, signatures, savers.",
        "FILE is a .meta file, a saved_model.pb, the text form of either, a SavedModel directory, or the prefix of a\n"
        "checkpoint that has a .meta file. A drawing: tfckpt meta model.meta --dot | dot -Tsvg > model.svg",
    )
    verb.add_argument("path", metavar="FILE")
    verb.add_argument("--tags", metavar="TAG,...", help="which graph of a SavedModel; the default is the one to serve")
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document, with all that the listing cuts")
    form.add_argument("--dot", action="store_true", help="a drawing for graphviz, name scopes folded")
    verb.add_argument("--depth", type=int, metavar="N", help="with --dot: unfold N levels of scopes; the default is 1")


def _add_selection(verb: argparse.ArgumentParser) -> None:
    for option, what in (("--include", "only tensors with a name in which REGEX is found"), ("--exclude", "none such")):
        verb.add_argument(option, metavar="REGEX", action="append", default=[], help=f"{what}; may be repeated")
