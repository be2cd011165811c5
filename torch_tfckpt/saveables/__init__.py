"""Values of a checkpoint: one `SaveableObject` per tensor, slice or object with state.

May use: torch tensors, modules and optimizers.
May not: write files, or depend on Saver, Checkpoint or any other caller.
"""
