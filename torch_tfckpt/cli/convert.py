"""tfckpt convert, diff and merge."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from torch_tfckpt.cli.console import error_text, option_text, say, show, show_json
from torch_tfckpt.cli.tables import progress_bar
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.conversion.merge import merge, merge_parts
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import counted, encodable, quoted


def convert_paths(options: argparse.Namespace) -> int:
    """Convert, and report where each tensor was written; exit status 1 if damaged tensors were left out."""
    with progress_bar("convert", quiet=options.quiet) as bar:
        report = convert(
            options.source,
            options.target,
            to=options.to,
            include=options.include,
            exclude=options.exclude,
            rename=_pairs(options.rename),
            dtype=options.dtype,
            clamp=options.clamp,
            max_shard_size=options.max_shard_size,
            dry_run=options.dry_run,
            skip_damaged=options.skip_damaged,
            names=options.names,
            weights_only=options.weights_only,
            to_torch=options.to_torch,
            to_tf=options.to_tf,
            preset=options.preset,
            scope=options.scope,
            map=options.map,
            infer=options.infer,
            check=options.check,
            optimizer=options.optimizer,
            ema=options.ema,
            strict=options.strict,
            like=options.like,
            report=options.report,
            progress=bar,
        )
    if options.json:
        show_json(report.as_json())
        warn_of_unmatched(report.unmatched_excludes)
    else:
        show(option_text(str(report)))
    for name, other in list(report.shared.items())[:1]:
        say(
            f"tfckpt: warning: left out {counted(len(report.shared), 'tensor')} whose objects "
            f"are still reachable by another name: {quoted(name)} is also {quoted(other)}"
        )
    return 0 if report.complete else 1


def diff_paths(options: argparse.Namespace) -> int:
    """Compare; exit status 1 if anything differs."""
    with progress_bar("diff", quiet=options.quiet) as bar:
        report = diff(
            options.a,
            options.b,
            atol=options.atol,
            ignore_dtype=options.ignore_dtype,
            include=options.include,
            exclude=options.exclude,
            rename=_pairs(options.rename),
            progress=bar,
        )
    if options.json:
        values = {name: found._asdict() for name, found in report.values.items()}
        paths = {"a": encodable(report.a), "b": encodable(report.b)}
        show_json(asdict(report) | paths | {"values": values, "identical": report.identical})
        warn_of_unmatched(report.unmatched_excludes)
    else:
        show(str(report))
    return 0 if report.identical else 1


def merge_paths(options: argparse.Namespace) -> int:
    """Merge, and report the result."""
    try:
        if not options.sources:
            report = merge_parts(options.target)
        else:
            report = merge(
                options.sources,
                options.target,
                delete_old_dirs=not options.keep_sources,
                allow_missing_files=options.allow_missing,
            )
    except InvalidArgumentError as error:
        # Not a usage error: the command was valid, but the checkpoints are not compatible.
        say(f"tfckpt: {error_text(error)}")
        return 1
    show(str(report))
    return 0


def _pairs(rename: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    return [(pattern, replacement) for pattern, replacement in rename]


def warn_of_unmatched(unmatched_excludes: Sequence[str]) -> None:
    """Print a warning for each unmatched --exclude. A report in text form already contains these warnings."""
    for pattern in unmatched_excludes:
        say(f"tfckpt: warning: --exclude {quoted(pattern)} matched nothing")
