"""Version 1 checkpoints: sorted tables of tensor slices, read, written and assembled over shards.

May use: the format, storage, tensors as values.
May not: know version 2, state files or Savers.
"""
