"""TensorFlow's optimizer state in torch optimizers: which slot is which tensor, and in which units?

`models.optimizer_slots` (load_model) and `objects.trackables.optimizers` (Checkpoint) find the slots and call it.
May use: torch optimizers, saveables, the checkpoint reader.
May not: search a checkpoint for a model's parameters, or know load_model, Checkpoint or Saver.
"""
