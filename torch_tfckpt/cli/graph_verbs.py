"""The arguments of the verbs for graphs: meta, run, compare-model."""

import argparse
from collections.abc import Callable
from typing import Final

_FILE: Final = (
    "FILE is a .meta file, a saved_model.pb, the text form of either, a SavedModel\n"
    "directory, or a checkpoint with a .meta file (a prefix, or a directory with a\n`checkpoint` file)."
)
_GRAPH: Final = (
    f"{_FILE} run and compare-model also read frozen graphs.\n\n"
    "A .meta file has the graph for training, and no values: --restore reads them from a\n"
    "checkpoint. A SavedModel brings its own."
)
AddVerb = Callable[..., argparse.ArgumentParser]


def add_graph_verbs(add: AddVerb) -> None:
    """Add the verbs. `add` takes the name of a verb, its function, its summary, a description and an epilog."""
    _add_meta(add)
    _add_run(add)
    _add_compare_model(add)


def _add_meta(add: AddVerb) -> None:
    verb = add(
        "meta",
        "meta:meta",
        "Show a meta graph: versions, operations, variables, collections, signatures, savers.",
        epilog=f"{_FILE}\n\nTo draw the graph: tfckpt meta model.meta --dot | dot -Tsvg > model.svg",
    )
    verb.add_argument("path", metavar="FILE")
    verb.add_argument("--tags", metavar="TAG,...", help="which graph of a SavedModel; default: the one for serving")
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as one JSON document, without limits")
    form.add_argument("--dot", action="store_true", help="print the graph for Graphviz, with name scopes folded")
    form.add_argument(
        "--run",
        dest="run",
        action="store_const",
        const="run:show_requirements",
        help="show what `tfckpt run` needs: inputs, likely outputs, and operations that are not supported",
    )
    verb.add_argument("--depth", type=int, metavar="N", help="with --dot: unfold N levels of scopes; default: 1")


def _add_run(add: AddVerb) -> None:
    verb = add(
        "run",
        "run:run_graph",
        "Compute tensors of a TensorFlow graph.",
        "A .meta file has the graph for training: feed the placeholders that turn off dropout\n"
        "and statistics of the batch. `tfckpt meta FILE --run` lists inputs and likely outputs.",
        epilog=f"{_GRAPH}\n\nA VALUE is a .npy file, or JSON such as 0.5 or [[1, 2]].\n\n"
        "  tfckpt run model.meta --restore model --feed x:0=x.npy --feed keep_prob:0=1.0 \\\n      --fetch logits:0",
    )
    verb.add_argument("path", metavar="FILE")
    verb.add_argument(
        "--feed", metavar="NAME=VALUE", action="append", default=[], help="the value of a tensor; may be repeated"
    )
    verb.add_argument(
        "--fetch",
        metavar="NAME",
        action="append",
        default=[],
        help="a tensor to compute; may be repeated; default with --signature: all of its outputs",
    )
    _add_source(verb)
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--output", metavar="DIR", help="write each tensor to a .npy file in DIR")
    form.add_argument("--json", action="store_true", help="print one JSON document")


def _add_compare_model(add: AddVerb) -> None:
    verb = add(
        "compare-model",
        "run:compare_models",
        "Compare a torch module with a TensorFlow graph, on the same random inputs.",
        "Print the largest error of each output, relative to the largest value, and the first\n"
        "layer of the module that differs. Exit status 0 if all outputs are equal, else 1.",
        epilog=f"{_GRAPH}\n\nMODULE is called without arguments, on the CPU, and returns the module with its\n"
        "weights. The current directory is searched first.\n\n"
        "  tfckpt compare-model net:build model.meta --restore model --inputs x:0 \\\n"
        "      --outputs logits:0 --constant keep_prob:0=1.0",
    )
    verb.add_argument("module", metavar="MODULE", help="function or class that builds the module, pkg.mod:factory")
    verb.add_argument("path", metavar="GRAPH")
    verb.add_argument(
        "--inputs",
        metavar="NAME[=ARG]",
        nargs="+",
        required=True,
        help="tensors of the graph in the order of the module's arguments, or with the names of arguments",
    )
    verb.add_argument(
        "--outputs",
        metavar="NAME[=KEY]",
        nargs="+",
        required=True,
        help="tensors of the graph in the order of what the module returns, or with its indices, keys or attributes",
    )
    verb.add_argument("--weights", metavar="PATH", help="a file or checkpoint for load_model to load")
    for option, form, text in (
        ("--axes", "NAME=0,3,1,2", "how the graph's axes are permuted to the module's; default: found by trying"),
        ("--shape", "NAME=2,8,3", "shape of an input in the graph"),
        ("--range", "NAME=LOW,HIGH", "smallest number of an input, and the number that all are below"),
        ("--constant", "NAME=VALUE", "a value that is fed in all samples"),
    ):
        verb.add_argument(option, metavar=form, action="append", default=[], help=f"{text}; may be repeated")
    _add_source(verb)
    verb.add_argument(
        "--inference", action="store_true", help="turn off the graph's dropout and statistics of the batch"
    )
    verb.add_argument("--samples", type=int, metavar="N", default=4, help="number of samples; default: 4")
    verb.add_argument("--tolerance", type=float, metavar="X", default=1e-5, help="largest error; default: 1e-5")
    verb.add_argument("--seed", type=int, metavar="N", default=0, help="of the random inputs; default: 0")
    verb.add_argument("--json", action="store_true", help="print one JSON document")


def _add_source(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--restore", metavar="PREFIX", help="the checkpoint with the variables' values")
    verb.add_argument(
        "--signature",
        metavar="NAME",
        help="a signature of a SavedModel; names are then those of its tensors",
    )
    verb.add_argument("--tags", metavar="TAG,...", help="which graph of a SavedModel; default: the one for serving")
