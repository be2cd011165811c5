"""Version 2 checkpoints: how tensors become an index and data files, and how they are read back.

May use: transfer, storage, format. One prefix at a time.
Must not: know state files, retention, Savers, or where a tensor is used.
"""
