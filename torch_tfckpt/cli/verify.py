"""tfckpt verify: what is damaged, and what is still good."""

import argparse
from contextlib import closing

from torch_tfckpt.bundle.check import Verification
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.cli.console import say, show, show_json
from torch_tfckpt.cli.tables import progress_bar
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError
from torch_tfckpt.foreign_files.formats import format_of
from torch_tfckpt.storage.names import fspath
from torch_tfckpt.text import counted, printable


def verify(options: argparse.Namespace) -> int:
    """Reports every damaged tensor; 1 where there is any."""
    path = fspath(options.path)
    if format_of(path) != "tf":
        raise InvalidArgumentError(
            f"{printable(path)} is no TensorFlow checkpoint, and other formats have no checksums to verify. "
            f"`tfckpt diff` compares it with what it was made from"
        )
    with closing(CheckpointReader(path)) as reader, progress_bar("verify", quiet=options.quiet) as bar:
        total = _total(reader) if bar else 0
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if bar:
                bar(done, total)

        found = reader.check(advance)
        checked = reader.path
    if options.json:
        _show_json(checked, found)
    else:
        _show_text(found, verbose=options.verbose)
        if not options.quiet and found.damage and found.good:
            say("The good tensors can be read; `tfckpt convert --include` saves them.")
    return 1 if found.damage else 0


def _total(reader: CheckpointReader) -> int:
    total = 0
    for name in _names(reader):
        try:
            total += reader.nbytes(name)
        except CheckpointError:
            continue  # its damage is what `check` reports; a bar need not be exact
    return total


def _names(reader: CheckpointReader) -> list[str]:
    try:
        return reader.keys()
    except CheckpointError:
        return []


def _show_text(found: Verification, *, verbose: bool) -> None:
    for damage in found.damage:
        show(str(damage))
    if verbose:
        for name in found.good:
            show(f"good: {name}")
    bad, good = len(found.damaged), len(found.good)
    if not found.damage:
        show(f"all is well: {counted(good, 'tensor')}")
    elif bad:
        show(f"damaged: {bad} of {counted(bad + good, 'tensor')}; good: {good}")
    else:
        show(f"the index is damaged; good are {counted(good, 'tensor')} that it still names")


def _show_json(path: str, found: Verification) -> None:
    show_json(
        {
            "path": path,
            "ok": not found.damage,
            "good": found.good,
            "damage": [damage._asdict() for damage in found.damage],
        }
    )
