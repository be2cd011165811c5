"""tfckpt map."""

import argparse

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.cli.console import error_text, say, show
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.models.auxiliary.recognition import auxiliary_keys
from torch_tfckpt.models.factories import build_module
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.models.rules.map_file_skeleton import map_file_skeleton
from torch_tfckpt.models.rules.rule_set import map_file_text


def map_names(options: argparse.Namespace) -> int:
    """Print rules; exit status 1 if they cannot be determined."""
    if options.module is None:
        with CheckpointReader(options.path) as reader:
            show(map_file_skeleton(reader, auxiliary_keys(reader)))
        return 0
    rules = KeyMapper(()) if options.rules is None else KeyMapper.from_file(options.rules)
    module = build_module(options.module)
    try:
        mapper = KeyMapper.infer(options.path, module, rules=rules)
    except CheckpointError as error:
        say(f"tfckpt: {error_text(error)}")
        return 1
    show(map_file_text(mapper))
    return 0
