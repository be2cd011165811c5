"""The command line: parser, verbs, exit status.

Exit status: 0 success; 1 damaged, missing, different or refused; 2 usage error; 130 interrupted; 141 the reader of a
pipe has closed it. A new verb is a function in a module of this package, and an `_add_` function here, or in
`graph_verbs`, for its arguments. The modules of verbs are imported when they run: help, completion and the verbs that
read no tensors start without torch.
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeAlias

from torch_tfckpt import __version__
from torch_tfckpt.cli.completion import add_completion
from torch_tfckpt.cli.console import error_text, escaped, escaped_messages, prepare_streams, say
from torch_tfckpt.cli.graph_verbs import add_graph_verbs
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError
from torch_tfckpt.foreign_files.format_names import FORMATS
from torch_tfckpt.text import printable

FAILED: Final = 1
USAGE_ERROR: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as in shells
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE

_PATHS: Final = """\
A path is a checkpoint: its prefix (model.ckpt-1000), any of its files, a
directory with a `checkpoint` file (the latest checkpoint in it) or a SavedModel
directory; or a Keras file (.keras, .weights.h5, .weights.json, .h5). ls,
show, convert, diff and average also read .pt, .npz and .safetensors files, and
the directory or index of a sharded .safetensors file.
"""
_TURNING: Final = """\
To convert a checkpoint to a file for model.load_state_dict, and back:
  tfckpt convert bert_model.ckpt bert.safetensors --to-torch --preset bert \\
      --check net:build
  tfckpt convert bert.safetensors bert/model --to-tf --preset bert --check net:build
Without --check, the rules must give the layouts of all kernels.
"""
_COMING_FROM_TENSORFLOW: Final = """\
Instead of TensorFlow's inspect_checkpoint:
  --file_name F                     tfckpt ls F
  --file_name F --tensor_name N     tfckpt show F N
  --file_name F --all_tensors       tfckpt show F --stats
"""
_EXIT_STATUS: Final = "Exit status: 0 success; 1 damaged, missing, different or refused; 2 usage error."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: The command line after the program's name; None: taken from sys.argv.
    """
    prepare_streams()
    with escaped_messages():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        parser().print_help(sys.stderr)
        return USAGE_ERROR
    try:
        options = parser().parse_args(given)
    except SystemExit as leave:  # argparse has already printed the error or the help
        return int(leave.code or 0)
    try:
        status = _function(options.run)(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # When Python exits, it flushes stdout again. This cannot fail if stdout is /dev/null.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        say("tfckpt: interrupted; nothing was left behind")
        return INTERRUPTED
    except CheckpointError as error:
        say(f"tfckpt: {error_text(error)}")
        return USAGE_ERROR if isinstance(error, InvalidArgumentError) else FAILED
    except OSError as error:
        where = f": {printable(os.fsdecode(error.filename))}" if error.filename else ""
        say(f"tfckpt: {error.strerror or error}{where}")
        return FAILED
    except RecursionError:
        say("tfckpt: the file is nested too deeply. It is damaged, or was made to be unreadable")
        return FAILED
    except MemoryError as error:
        say(f"tfckpt: not enough memory{f': {error}' if str(error) else ''}")
        return FAILED
    except Exception:
        say(f"tfckpt: internal error, please report it with this traceback:\n{traceback.format_exc()}")
        return FAILED
    return status


class _Parser(argparse.ArgumentParser):
    """Parser that escapes what it prints, because its errors quote the arguments."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            super()._print_message("\n".join(map(escaped, message.split("\n"))), file)


def _function(place: str) -> Callable[[argparse.Namespace], int]:
    """Import the function of a verb, given as "module:function" of this package."""
    module, _, name = place.partition(":")
    function: Callable[[argparse.Namespace], int] = getattr(import_module(f"{__package__}.{module}"), name)
    return function


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs, from which help, completion and the documentation are made."""
    parser: argparse.ArgumentParser = _Parser(
        prog="tfckpt",
        description="Read, check, convert and compare TensorFlow checkpoints, without TensorFlow.",
        epilog=f"{_PATHS}\n{_COMING_FROM_TENSORFLOW}\n{_EXIT_STATUS}\n"
        '`tfckpt VERB --help` describes a verb. Completion: eval "$(tfckpt --print-completion bash)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tfckpt {__version__}")
    add_completion(parser)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for add in (
        _add_ls, _add_show, _add_verify, _add_convert, _add_map, _add_diff, _add_latest, _add_merge, _add_average,
    ):  # fmt: skip
        add(verbs)
    add_graph_verbs(partial(_add_verb, verbs))
    return parser


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_verb(
    verbs: Verbs, name: str, run: str, summary: str, description: str = "", epilog: str = _PATHS
) -> argparse.ArgumentParser:
    """Add a verb.

    Args:
        run: "module:function" of this package; the function takes the parsed arguments and returns the exit status.
        summary: One line for the list of verbs.
        description: Continues the summary in the help of the verb.
    """
    verb = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary}\n\n{description}".rstrip(),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run)
    verb.add_argument("-q", "--quiet", action="store_true", help="print results and errors only")
    return verb


def _add_ls(verbs: Verbs) -> None:
    verb = _add_verb(verbs, "ls", "show:ls", "List the tensors of a file in any format: name, type, shape, size.")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument(
        "patterns",
        metavar="GLOB",
        nargs="*",
        default=[],
        help="only names that match one of these, such as 'encoder/*'",
    )
    order = verb.add_mutually_exclusive_group()
    order.add_argument(
        "--sort",
        choices=("stored", "name", "size"),
        help='default: "name" (layer_2 before layer_10), or "stored" with --json; "size" lists the largest first',
    )
    order.add_argument(
        "--tree",
        dest="run",
        action="store_const",
        const="tree:ls_tree",
        help="show the objects of an object-based checkpoint (tf.train.Checkpoint, Keras) with their tensors",
    )
    verb.add_argument("--all", action="store_true", help="with --tree: also show objects without tensors below them")
    verb.add_argument("--json", action="store_true", help="print one JSON document")


def _add_show(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "show",
        "show:show_path",
        "Show a summary of a file in any format, or the values of one tensor.",
        "If PATH is not a checkpoint or a file of tensors, print its kind and how to read\n"
        "it: exit status 0 if tfckpt supports it, 1 if it does not.",
        epilog=f"{_PATHS}\n{_COMING_FROM_TENSORFLOW}",
    )
    verb.add_argument("path", metavar="PATH")
    verb.add_argument(
        "name", metavar="NAME", nargs="?", help="a tensor: its key, or the name of the object or variable it belongs to"
    )
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--stats", action="store_true", help="range, mean, deviation and NaN count instead of values")
    form.add_argument("--full", action="store_true", help="all values of NAME in full; JSON strings are indented")
    form.add_argument(
        "--config",
        dest="run",
        action="store_const",
        const="keras_config:show_config",
        help="the layers of a Keras model (.keras, .h5, or its JSON) with settings such as padding and epsilon",
    )
    verb.add_argument("--json", action="store_true", help="print one JSON document; NaN and infinities are strings")


def _add_verify(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs, "verify", "verify:verify", "Compare every byte of a TensorFlow checkpoint with its checksum."
    )
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("-v", "--verbose", action="store_true", help="also list the undamaged tensors")
    verb.add_argument("--json", action="store_true", help="print one JSON document")


def _add_convert(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "convert",
        "convert:convert_paths",
        "Convert between TensorFlow checkpoints, .safetensors, .pt and .npz, or to Keras weights.",
        "An existing DST is replaced. Names and layouts do not change, unless --to-torch or\n--to-tf is given.",
        f"{_PATHS}\n{_TURNING}\nValues that the target format cannot store (strings, variants, TensorFlow's\n"
        f"quantized types) go to a second file, DST.tfckpt.json, and are restored when DST is\n"
        "read by this package.\n\n"
        'With --to tf, a .pt file with {"model": model.state_dict(), "optimizer":\n'
        "optimizer.state_dict(), ...}, or one saved by Lightning, becomes a checkpoint that\n"
        'Saver({"model": model, "optimizer": optimizer, ...}) can restore. An optimizer whose\n'
        "parameters cannot be told apart is reported and omitted, with exit status 1.",
    )
    verb.add_argument("source", metavar="SRC")
    verb.add_argument("target", metavar="DST", help="a file; with --to tf a prefix; with --to safetensors a directory")
    verb.add_argument(
        "--like",
        metavar="FILE",
        help="the .keras file of the model, for a DST that ends in .weights.h5, which Keras's load_weights takes",
    )
    verb.add_argument("--to", choices=FORMATS, help="format of DST; default: determined by its extension")
    verb.add_argument("--dtype", metavar="TYPE", help="type for floating-point tensors: bf16, float16, float32 ...")
    verb.add_argument("--clamp", action="store_true", help="clamp values beyond the range of --dtype to that range")
    verb.add_argument("--max-shard-size", metavar="SIZE", help="split safetensors into files of at most SIZE, e.g. 5GB")
    verb.add_argument("--dry-run", action="store_true", help="report what would be written, and write nothing")
    verb.add_argument(
        "--skip-damaged",
        action="store_true",
        help="omit damaged and missing tensors, list them, and exit with status 1",
    )
    verb.add_argument(
        "--names",
        choices=("keys", "paths", "variables"),
        default="keys",
        help='tensor names to use for an object-based checkpoint: "keys" (default), object "paths", or full '
        'names of "variables"',
    )
    verb.add_argument("--weights-only", action="store_true", help="omit optimizer state, counters and moving averages")
    _add_turning(verb)
    verb.add_argument("--report", metavar="FILE", help="write the report to FILE, as JSON")
    verb.add_argument("--json", action="store_true", help="print the report as one JSON document")
    _add_selection(verb)


def _add_turning(verb: argparse.ArgumentParser) -> None:
    direction = verb.add_mutually_exclusive_group()
    direction.add_argument("--to-torch", action="store_true", help="give the tensors torch's names and layouts")
    direction.add_argument("--to-tf", action="store_true", help="the inverse: TensorFlow's names and layouts")
    rules = verb.add_mutually_exclusive_group()
    rules.add_argument("--preset", metavar="NAME", help="rules for a family of models, such as bert")
    rules.add_argument("--map", metavar="FILE", help="rules in a map file (TOML)")
    rules.add_argument("--infer", metavar="FACTORY", help="find the rules for the module of FACTORY, pkg.mod:factory")
    verb.add_argument(
        "--scope",
        metavar="NAME",
        help='with --preset or --map: first part of TensorFlow\'s names, such as resnet_v1_50, or "" for none',
    )
    verb.add_argument(
        "--check",
        metavar="FACTORY",
        help="the module that DST is for, pkg.mod:factory: it decides layouts, and must load DST strictly",
    )
    verb.add_argument(
        "--optimizer", action="store_true", help="with --to-torch and --check: also the optimizer's state, into a .pt"
    )
    verb.add_argument(
        "--ema",
        choices=("warn", "ignore", "prefer", "only"),
        default="warn",
        help="with --to-torch: whether to take moving averages; default: no, but report them",
    )
    verb.add_argument(
        "--no-strict", dest="strict", action="store_false", help="omit weights that no rule matches, and list them"
    )


def _add_map(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "map",
        "map:map_names",
        "Print the rules that load a TensorFlow checkpoint into a torch module, as TOML.",
        "The layers of the checkpoint are matched with the modules by kind, shape, words and\n"
        "numbers in names, and by neighbouring layers. A comment gives the reason for each\n"
        "rule. If a match is ambiguous, nothing is guessed: the candidates, and rules that\n"
        "choose between them, are printed to stderr, with exit status 1.\n\n"
        "Without --module, print a rule without a target for each weight, to be completed.",
        epilog=f"{_PATHS}\nFACTORY is called without arguments, on the meta device. The current directory is\n"
        "searched first.\n\n  tfckpt map model.ckpt-1000 --module net:Classifier > map.toml",
    )
    verb.add_argument("path", metavar="SRC")
    verb.add_argument("--module", metavar="PKG.MOD:FACTORY", help="class or function that builds the torch module")
    verb.add_argument("--rules", metavar="FILE", help="a map file whose rules take precedence and resolve ambiguities")


def _add_diff(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs, "diff", "convert:diff_paths", "Compare two files of any format: names, types, shapes, values."
    )
    verb.add_argument("a", metavar="A")
    verb.add_argument("b", metavar="B")
    verb.add_argument(
        "--atol", type=float, default=0.0, metavar="X", help="largest allowed difference; default: bits must be equal"
    )
    verb.add_argument("--ignore-dtype", action="store_true", help="compare values even if their numeric types differ")
    verb.add_argument("--json", action="store_true", help="print one JSON document")
    _add_selection(verb, "rename tensors of A, as for convert,")


def _add_latest(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "latest",
        "latest:latest",
        "Print the latest checkpoint of a directory, as recorded in its `checkpoint` file.",
        epilog="In a script: tfckpt convert $(tfckpt latest --valid run) model.safetensors",
    )
    verb.add_argument("directory", metavar="DIR")
    verb.add_argument("--valid", action="store_true", help="print the latest checkpoint whose files are complete")
    verb.add_argument("--latest-filename", metavar="NAME", help="name of the state file; default: checkpoint")
    verb.add_argument("--json", action="store_true", help="print one JSON document")


def _add_merge(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "merge",
        "convert:merge_paths",
        "Merge TensorFlow version 2 checkpoints into one by renaming their data files.",
        "With only one argument: publish the checkpoint of that name whose ranks have all ended when\n"
        "their parts were complete.",
        epilog=f"{_PATHS}\nWithout --keep-sources the sources are deleted afterwards.",
    )
    verb.add_argument("sources", metavar="SRC", nargs="*", help="a checkpoint, such as model.ckpt-1000")
    verb.add_argument("target", metavar="DST", help="the prefix of the result, or a checkpoint to replace")
    verb.add_argument("--keep-sources", action="store_true", help="do not delete the sources afterwards")
    verb.add_argument("--allow-missing", action="store_true", help="skip sources that do not exist")


def _add_average(verbs: Verbs) -> None:
    verb = _add_verb(
        verbs,
        "average",
        "average:average_paths",
        "Average several checkpoints of one model into one TensorFlow checkpoint.",
        "Floating-point and complex tensors, including those of optimizers, are averaged. All\n"
        "others, and the object graph, are taken from the last SRC. An existing DST is replaced.",
        epilog="SRC is any checkpoint or file that convert reads. If SRC is a directory with a `checkpoint`\n"
        "file, all checkpoints listed there are averaged, or with --last N only the last N.\n\n"
        "The last five checkpoints of a run, without optimizer state:\n"
        "  tfckpt average run run/average.ckpt --last 5 --exclude '/Adam|beta._power'",
    )
    verb.add_argument(
        "sources",
        metavar="SRC",
        nargs="+",
        help="checkpoints, oldest first, or the directory of a run",
    )
    verb.add_argument("target", metavar="DST", help="the prefix of the result")
    verb.add_argument("--last", type=int, metavar="N", help="only the last N checkpoints of a directory")
    verb.add_argument(
        "--newest",
        metavar="REGEX",
        action="append",
        default=[],
        help="take tensors whose name contains a match of REGEX from the last SRC; may be repeated",
    )
    verb.add_argument("--dry-run", action="store_true", help="compare names, types and shapes, and write nothing")
    verb.add_argument("--json", action="store_true", help="print the report as one JSON document")
    _add_selection(verb, rename=False)


def _add_selection(verb: argparse.ArgumentParser, renaming: str = "rename tensors", *, rename: bool = True) -> None:
    for option, what in (("--include", "only"), ("--exclude", "omit")):
        verb.add_argument(
            option,
            metavar="REGEX",
            action="append",
            default=[],
            help=f"{what} tensors whose name contains a match of REGEX; may be repeated",
        )
    if not rename:
        return
    verb.add_argument(
        "--rename",
        nargs=2,
        action="append",
        default=[],
        metavar=("REGEX", "REPLACEMENT"),
        help=f"{renaming} with Python's re.sub; may be repeated",
    )
