"""Convert TensorFlow's optimizer state to torch's: map slots to state tensors, and convert values.

`models.optimizer_slots` (load_model) and `objects.trackables.optimizers` (Checkpoint) find the slots and call this
package.
    kinds                  the kinds of optimizers that both have, and the names of their state
    slots                  find slots by object or by name
    stored_optimizer       counters and hyperparameters in a checkpoint
    tensorflow, to_tensorflow
                           convert the state to torch's, and back
    differences            what torch's optimizers compute differently

May use: torch optimizers, saveables, the checkpoint reader.
May not: search a checkpoint for a model's parameters, or depend on load_model, Checkpoint or Saver.
"""
