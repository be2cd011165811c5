"""Version 2 checkpoints: write tensors to an index and data files, and read them.

`tensor_reader` and `check.Verification` are for the readers of all formats.

May use: transfer, storage, format. Only `merge` handles more than one prefix.
Must not: know about state files, retention, Savers, or what a tensor is used for.
"""
