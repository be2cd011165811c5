"""Where are bytes stored? Files of this machine, and objects behind URLs.

`protocol` defines what a checkpoint needs from a storage, `local` is this machine's files, `remote` is fsspec, `choice`
picks one for a path.
May use: os, fsspec. May not: import torch, or know what the bytes mean.
"""
