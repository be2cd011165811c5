"""Skeleton of a map file: a rule without a target for each weight of a checkpoint, to be completed by hand."""

from collections.abc import Container
from typing import Final

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.models.rules.key_rules import KeyRule, check_rule
from torch_tfckpt.models.rules.map_file import rule_text
from torch_tfckpt.models.stored_names import variable_name_of
from torch_tfckpt.text import escaped, natural_order

_HEADER: Final = """\
# Write the name of a tensor of the module after each `to`. An empty target omits the
# variable. Add the layout where a comment gives one; otherwise it follows from the module.
"""


def map_file_skeleton(reader: CheckpointReader, auxiliary: Container[str]) -> str:
    """Return the skeleton for the weights of a checkpoint, in natural order of their names.

    Args:
        auxiliary: Keys to leave out.
    """
    found = [_HEADER]
    for key in sorted(reader.keys(), key=natural_order):
        if key in auxiliary:
            continue
        shape = tuple(reader.shape(key))
        variable = reader.variable_name(key)
        called = f", variable {escaped(variable)}" if variable else ""
        kind = _kind(variable_name_of(variable or key), len(shape))
        comment = f"# {shape_text(shape)}{called}{f': {kind}' if kind else ''}\n"
        found.append(comment + rule_text(check_rule("a rule", KeyRule(short_key(key), None, literal=True))))
    return "\n".join(found)


def _kind(leaf: str, rank: int) -> str:
    """Return what the name of a variable and its rank show about its layer; "" if they show nothing."""
    leaf = leaf.removeprefix("_")
    if leaf in ("kernel", "weights", "pointwise_kernel", "pointwise_weights"):
        kinds = {
            2: 'Dense, layout "dense", or a part of a recurrent layer',
            3: 'Conv1D, layout "conv1d", or a Dense with heads, layout "dense"',
            4: 'Conv2D, layout "conv2d"',
            5: 'Conv3D, layout "conv3d"',
        }
        return kinds.get(rank, "")
    if leaf.startswith("depthwise_"):
        return 'depthwise convolution, layout "depthwise"'
    return {
        "recurrent_kernel": "recurrent layer",
        "embeddings": 'Embedding, layout "same"',
        "gamma": "weight of a normalization",
        "beta": "bias of a normalization",
        "moving_mean": "running_mean of a BatchNorm",
        "moving_variance": "running_var of a BatchNorm",
        "bias": "bias",
        "biases": "bias",
    }.get(leaf, "")
