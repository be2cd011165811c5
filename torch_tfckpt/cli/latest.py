"""tfckpt latest: print the latest checkpoint of a directory."""

import argparse

from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.cli.subdirectories import checkpoints_below
from torch_tfckpt.directory.management import latest_checkpoint
from torch_tfckpt.directory.names import STATE_FILE
from torch_tfckpt.directory.state_file import get_checkpoint_state
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import fspath, is_url
from torch_tfckpt.text import encodable, printable, quoted


def latest(options: argparse.Namespace) -> int:
    """Print the path of the latest checkpoint; exit status 1 if there is no checkpoint."""
    directory = fspath(options.directory)
    if not is_url(directory) and not LOCAL.is_directory(directory):
        kind = "is not a directory" if LOCAL.exists(directory) else "there is no such directory"
        say(f"tfckpt: {printable(directory)}: {kind}")
        return 1
    newest = latest_checkpoint(directory, options.latest_filename, valid=options.valid)
    if options.json:
        state = get_checkpoint_state(directory, options.latest_filename)
        listed = [] if state is None else list(state.all_model_checkpoint_paths)
        show_json({"directory": encodable(directory), "latest": newest, "listed": listed})
    elif newest is not None:
        show(printable(newest))
    else:
        if options.valid:
            finding = "there is no complete checkpoint"
        elif get_checkpoint_state(directory, options.latest_filename) is None:
            finding = f"there is no valid {quoted(options.latest_filename or STATE_FILE)} file"
        else:
            finding = "the checkpoint named in its state file does not exist"
        hint = "" if options.valid else ". `tfckpt latest --valid` searches for others"
        below = checkpoints_below(directory).sentence("latest")
        hint = f". {below}" if below else hint
        say(f"tfckpt: {printable(directory)}: {finding}{hint}")
    return 1 if newest is None else 0
