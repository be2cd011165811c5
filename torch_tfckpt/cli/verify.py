"""tfckpt verify: list the damaged tensors, and how many can be read."""

import argparse

from torch_tfckpt.bundle.check import Verification
from torch_tfckpt.cli.console import escaped, say, show, show_json
from torch_tfckpt.cli.tables import progress_bar
from torch_tfckpt.conversion.verify import verify as check
from torch_tfckpt.text import counted


def verify(options: argparse.Namespace) -> int:
    """Report every damaged tensor; exit status 1 if any tensor is damaged."""
    with progress_bar("verify", quiet=options.quiet) as bar:
        found = check(options.path, progress=bar)
    if options.json:
        _show_json(found)
    else:
        *damage, summary = str(found).splitlines()
        for line in damage:
            show(line)
        for name in found.good if options.verbose else ():
            show(f"good: {escaped(name)}")
        show(summary)
        if not found.ok and found.good and not options.quiet:
            say(f"`tfckpt convert --skip-damaged` saves the {counted(len(found.good), 'tensor')} that can be read")
    return 0 if found.ok else 1


def _show_json(found: Verification) -> None:
    show_json(
        {
            "path": found.path,
            "ok": found.ok,
            "good": found.good,
            "damage": [damage._asdict() for damage in found.damage],
        }
    )
