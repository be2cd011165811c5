"""Keras's own files: .keras, .weights.h5, sharded .weights.json, and .h5 of Keras 1 and 2.

`contents` opens a file of any form, `names` and `legacy_names` name its tensors, `variables` and `optimizer_names`
have the names that Keras gives, `config` reads the configuration of the model, `layer_graph` says which layers
follow each other, and `reader` reads the tensors. `template` is what another file of the same model contains, and
`object_parts` has the names of its objects in a checkpoint.

May use: format, storage, values, transfer.
Must not: import Keras or h5py, create an object that a file describes, or open other files that a file names, except
the shards that an index lists and that are in its directory.
"""
