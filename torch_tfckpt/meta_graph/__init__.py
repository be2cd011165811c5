"""Meta graphs: the `.meta` file beside a checkpoint, and the graphs in a SavedModel.

Reading, from bytes to tensors:

    files.py, text.py       which file, binary or text; the messages in it
    encoded.py              one MetaGraphDef as bytes, its parts decoded when they are asked for
    stored_values.py        what the nodes of a saver store: which key goes into which variable
    variables.py            the variables of a graph, from its collections and nodes
    tensors.py              the torch tensors that they are

Writing, from tensors to bytes:

    registered.py           what is saved and registered, as variables and savers under names of one graph
    making.py               the meta graph of that
    nodes.py, node_names.py, variable_nodes.py, saver_nodes.py      its nodes, as TensorFlow makes them
    op_list.py, ops.pbtxt   the operations that they are of
    exporting.py            the options of an export, and the file

Both: described.py (variables and savers as plain values), collection_defs.py and collection_kinds.py (collections).
Changing what was read: splicing.py (parts of messages), rewriting.py, rescoping.py and scopes.py (names).
Showing it: summary.py, dot.py.

Source: tensorflow/core/protobuf/meta_graph.proto; spec: SAVER 6, FORMATS 5.
"""
