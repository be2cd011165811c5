"""Convert TensorFlow's optimizer state to torch's: map slots to state tensors, and convert values.

`models.optimizer_slots` (load_model) and `objects.trackables.optimizers` (Checkpoint) find the slots and call this
package.
May use: torch optimizers, saveables, the checkpoint reader.
May not: search a checkpoint for a model's parameters, or depend on load_model, Checkpoint or Saver.
"""
