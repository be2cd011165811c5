"""TensorFlow's optimizer state in torch optimizers: which slot is which tensor, and in which units?

May use: torch optimizers, saveables, the checkpoint reader.
May not: search a checkpoint for a model's parameters, or know load_model, Checkpoint or Saver.
"""
