"""Version 2 checkpoints: write tensors to an index and data files, and read them.

May use: transfer, storage, format. One prefix at a time.
Must not: know state files, retention, Savers, or the use of a tensor.
"""
