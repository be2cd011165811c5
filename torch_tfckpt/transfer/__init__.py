"""How do bytes leave and enter a device? Staged, checksummed, by several threads, in bounded memory.

`transfer` carries out a whole save in the background, `pipeline` moves the bytes of readers and of BundleWriter.
May use: torch, threads, CUDA streams, storage, `format.crc32c`.
May not: know a checkpoint key or the layout of a file.
"""
