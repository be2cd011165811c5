"""Directories of checkpoints: resolve paths, find the latest checkpoint, delete old ones.

    locate, names       the files of a checkpoint; whether a checkpoint exists; equal spellings of a path
    state_file          the `checkpoint` file
    management          latest_checkpoint and tf.train's other checkpoint functions
    checkpoint_files    the files of a checkpoint, for copies
    completeness        the checks for latest_checkpoint(valid=True)
    recovered_parts     publishes what killed ranks have left, for latest_checkpoint(valid=True)
    retention           decides which checkpoints to delete; uses neither a clock nor a file
    records             writes the state file and deletes checkpoints, in a safe order
    retention_file      keeps pins and metrics across restarts
    unlisted            marks expired checkpoints, so that the next run deletes them if this run is killed

May use: names, the state file, the file of pins and metrics, storage. May not: import torch.
"""
