"""tfckpt average."""

import argparse
from dataclasses import asdict

from torch_tfckpt.cli.console import error_text, say, show, show_json
from torch_tfckpt.cli.convert import warn_of_unmatched
from torch_tfckpt.cli.tables import progress_bar
from torch_tfckpt.conversion.average import average
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import encodable


def average_paths(options: argparse.Namespace) -> int:
    """Average, and report what became of each tensor."""
    try:
        with progress_bar("average", quiet=options.quiet) as bar:
            report = average(
                options.sources,
                options.target,
                last=options.last,
                include=options.include,
                exclude=options.exclude,
                newest=options.newest,
                dry_run=options.dry_run,
                progress=bar,
            )
    except InvalidArgumentError as error:
        # Not a usage error in general: the command was valid, but the checkpoints are not compatible.
        say(f"tfckpt: {error_text(error)}")
        return 1
    if options.json:
        paths = {"target": encodable(report.target), "sources": [encodable(path) for path in report.sources]}
        show_json(asdict(report) | paths | {"files": [encodable(path) for path in report.files]})
        warn_of_unmatched(report.unmatched_excludes)
        for remark in report.remarks:
            say(f"tfckpt: warning: {remark}")
    else:
        show(str(report))
    return 0
