"""Version 2 checkpoints: how do tensors become an index and data files, and the files tensors again?

May use: the transfer of bytes, storage, the format. One prefix at a time.
May not: know state files, retention, Savers, or where a tensor is used.
"""
