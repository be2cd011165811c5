"""tfckpt convert, diff and merge."""

import argparse
from dataclasses import asdict

from torch_tfckpt.bundle.merge import merge_bundles
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.cli.tables import progress_bar
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.text import counted, printable


def convert_paths(options: argparse.Namespace) -> int:
    """Converts, and reports what is where."""
    with progress_bar("convert", quiet=options.quiet) as bar:
        report = convert(
            options.source,
            options.target,
            to=options.to,
            include=options.include,
            exclude=options.exclude,
            rename=[(pattern, replacement) for pattern, replacement in options.rename],
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            dry_run=options.dry_run,
            progress=bar,
        )
    if options.json:
        show_json(
            asdict(report)
            | {"source": printable(report.source), "target": printable(report.target)}
            | {"files": [printable(path) for path in report.files]}
            | {"converted": [item._asdict() for item in report.converted], "nbytes": report.nbytes}
            | {"sidecar": [item._asdict() for item in report.sidecar]}
        )
    else:
        show(str(report))
    return 0


def diff_paths(options: argparse.Namespace) -> int:
    """Compares; 1 where anything differs."""
    with progress_bar("diff", quiet=options.quiet) as bar:
        report = diff(
            options.a,
            options.b,
            atol=options.atol,
            ignore_dtype=options.ignore_dtype,
            include=options.include,
            exclude=options.exclude,
            progress=bar,
        )
    if options.json:
        values = {name: found._asdict() for name, found in report.values.items()}
        paths = {"a": printable(report.a), "b": printable(report.b)}
        show_json(asdict(report) | paths | {"values": values, "identical": report.identical})
    else:
        show(str(report))
    return 0 if report.identical else 1


def merge(options: argparse.Namespace) -> int:
    """Merges, and says what came out."""
    sources, target = [_prefix(path) for path in options.sources], _prefix(options.target)
    try:
        merge_bundles(
            LOCAL,
            sources,
            target,
            allow_missing_files=options.allow_missing,
            delete_sources=not options.keep_sources,
        )
    except InvalidArgumentError as error:
        # The checkpoints do not fit together, or one is not there: the command itself was well formed.
        say(f"tfckpt: {error}")
        return 1
    with CheckpointReader(target) as reader:
        files = {path for name in reader.keys() for path in reader.locate(name)}
        held = f"{counted(len(reader), 'tensor')} in {counted(len(files), 'data file')}"
        show(f"merged into {printable(target)}: {held}")
    return 0


def _prefix(path: str) -> str:
    """The prefix, where people name the index instead."""
    return fspath(path).removesuffix(".index")
