"""Directories of checkpoints: which checkpoint a path means, which is the latest, which are deleted.

    locate, names       the files of a checkpoint; whether a checkpoint exists; equal spellings of a path
    state_file          the `checkpoint` file
    management          latest_checkpoint and tf.train's other functions; completeness: what `valid=True` checks
    retention           decides what is deleted; sees neither a clock nor a file
    records             the order of state file and deletion; retention_file: pins and metrics across restarts

May use: names, the state file, the file of pins and metrics, storage. May not: import torch.
"""
