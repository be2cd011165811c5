"""Directories of checkpoints: which checkpoint does a path mean, which is the latest, which are kept?

May use: names, the `checkpoint` state file, the file of pins and metrics, storage.
May not: import torch. `retention` sees neither a clock nor a file.
"""
