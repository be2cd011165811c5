"""How do bytes leave and enter a device? Staged, checksummed, by several threads, in bounded memory.

May use: torch, threads, CUDA streams, storage.
May not: know a checkpoint key or the format of a file.
"""
