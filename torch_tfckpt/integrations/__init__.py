"""Checkpoints for the checkpoint interfaces of other libraries.

torch.distributed.checkpoint: `dcp_writer` and `dcp_reader` are its StorageWriter and StorageReader.

    dcp_names, dcp_contents    the names of values: in a state_dict that is saved, and in a checkpoint that is loaded
    dcp_items                  what a rank writes
    dcp_texts                  the JSON of values that are not tensors
    dcp_alone                  saves with use_collectives=False

Each module imports the library that it is for, so no other package imports a module of this one.
"""
