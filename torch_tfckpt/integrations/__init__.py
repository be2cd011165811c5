"""Checkpoints for the checkpoint interfaces of other libraries.

torch.distributed.checkpoint: `dcp_writer` and `dcp_reader` are its StorageWriter and StorageReader, `dcp_names` the
names under which both find the values of a state_dict, `dcp_texts` the JSON of the values that are not tensors.

Each module imports the library that it is for, so nothing in the package imports a module of this package at the top.
"""
