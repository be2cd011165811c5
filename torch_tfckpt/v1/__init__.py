"""Version 1 checkpoints: tables of tensor slices, read, written, and assembled across shards.

May use: format, storage, and `values` for tensors.
Must not: know about version 2, state files or Savers.
"""
