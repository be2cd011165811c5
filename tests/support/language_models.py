"""Models of transformers with small random configurations, and values for variables of TensorFlow."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch_families import family

Shapes = Mapping[str, tuple[int, ...]]
SIZES = {
    "vocabulary": 37, "positions": 19, "layers": 2, "hidden": 15, "heads": 3, "head": 5, "inner": 22, "embedding": 9,
    "groups": 2, "inner_groups": 1, "buckets": 10,
}  # fmt: skip
"""Sizes for the functions of `tensorflow_families`."""


def bert_settings(sizes: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """Return the configuration of transformers for a BERT of these sizes, with further settings."""
    return {
        "vocab_size": sizes["vocabulary"],
        "max_position_embeddings": sizes["positions"],
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["inner"],
        **more,
    }


def gpt2_settings(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the configuration of transformers for a GPT-2 of these sizes."""
    return {
        "vocab_size": sizes["vocabulary"],
        "n_positions": sizes["positions"],
        "n_layer": sizes["layers"],
        "n_embd": sizes["hidden"],
        "n_head": sizes["heads"],
        "n_inner": sizes["inner"],
    }


def t5_settings(sizes: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """Return the configuration of transformers for a T5 of these sizes, with further settings."""
    return {
        "vocab_size": sizes["vocabulary"],
        "d_model": sizes["hidden"],
        "d_kv": sizes["head"],
        "d_ff": sizes["inner"],
        "num_layers": sizes["layers"],
        "num_heads": sizes["heads"],
        "relative_attention_num_buckets": sizes["buckets"],
        **more,
    }


def language_model(name: str, configuration: Mapping[str, Any]) -> Any:
    """Return a model of transformers, for evaluation. Skips the test if transformers is not installed.

    Args:
        name: Its class, such as "BertModel".
        configuration: Arguments of the class of its configuration.
    """
    transformers = family("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = getattr(transformers, name)
        # Dropout of 0 and attention in plain torch, which has no other settings.
        return kind(kind.config_class(attn_implementation="eager", **configuration)).eval()


def outputs(model: torch.nn.Module, **inputs: torch.Tensor) -> Any:
    """Return what the model computes, without warnings."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return model(**inputs)


def random_values(shapes: Shapes, seed: int = 1) -> dict[str, np.ndarray]:
    """Return values of a size that keeps activations apart: near 1 for the scales of norms, else near 0."""
    generator = np.random.default_rng(seed)
    scales = ("gamma", "g", "scale")
    return {
        name: (generator.normal(0, 0.3, shape) + (name.rpartition("/")[2] in scales)).astype(np.float32)
        for name, shape in shapes.items()
    }


def slots_like(values: Mapping[str, np.ndarray], endings: Sequence[str]) -> dict[str, np.ndarray]:
    """Return slots of an optimizer: name + ending -> values of the same shape."""
    return {f"{name}{ending}": np.full_like(value, 0.5) for name, value in values.items() for ending in endings}


def factored_slots(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return slots of Adafactor: rows and columns of matrices, and all of vectors."""
    found = {}
    for name, value in values.items():
        if value.ndim == 2:
            found[f"{name}_slot_vr"], found[f"{name}_slot_vc"] = value.mean(1), value.mean(0)
        else:
            found[f"{name}_slot_v"] = value
    return found
