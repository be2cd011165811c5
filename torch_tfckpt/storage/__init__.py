"""Storage of bytes: local files, and objects at URLs.

`protocol` defines the operations that a checkpoint needs, `local` implements it for local files and `remote` for
fsspec; `choice` picks the storage for a path.
May use: os, fsspec. Must not: import torch, or interpret the bytes.
"""
