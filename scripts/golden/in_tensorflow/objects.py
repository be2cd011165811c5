"""Object-based checkpoints of fixed content."""

from pathlib import Path

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]


def write_graph_alone(folder: str) -> None:
    """Write the checkpoint of a module without variables to a SavedModel's path of variables."""
    module = tf.Module()
    module.split = tf.Module()
    module.split.lower = tf.Module()
    module.languages = ["de", "en"]
    (Path(folder) / "variables").mkdir()
    tf.train.Checkpoint(module).write(str(Path(folder) / "variables" / "variables"))
