"""tfckpt latest: print the latest checkpoint of a directory."""

import argparse

from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.directory.management import latest_checkpoint
from torch_tfckpt.directory.state_file import get_checkpoint_state
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.text import printable


def latest(options: argparse.Namespace) -> int:
    """Print the path of the latest checkpoint; exit status 1 if there is no checkpoint."""
    directory = fspath(options.directory)
    newest = latest_checkpoint(directory, options.latest_filename, valid=options.valid)
    if options.json:
        state = get_checkpoint_state(directory, options.latest_filename)
        listed = [] if state is None else list(state.all_model_checkpoint_paths)
        show_json({"directory": printable(directory), "latest": newest, "listed": listed})
    elif newest is not None:
        show(printable(newest))
    else:
        kind = "complete checkpoint" if options.valid else "checkpoint named in its state file"
        hint = "" if options.valid else ". `tfckpt latest --valid` searches for others"
        say(f"tfckpt: {printable(directory)}: there is no {kind}{hint}")
    return 1 if newest is None else 0
