"""Where bytes are stored: local files, and objects at URLs.

`protocol` defines what a checkpoint needs from a storage, `local` implements it for local files and `remote` for
fsspec; `choice` picks the storage for a path.
May use: os, fsspec. Must not: import torch, or interpret the bytes.
"""
