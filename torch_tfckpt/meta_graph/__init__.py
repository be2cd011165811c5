"""Meta graphs: the `.meta` file of a checkpoint and the graphs in a SavedModel, as data.

May use: protobuf, the format of graphs. May not: import torch, or be imported by `objects`, `models` or `conversion`.

Reading, from bytes to what a saver stores:

    files.py, text.py       which file, binary or text; the messages in it
    raw.py                  one MetaGraphDef as bytes, its parts decoded on request
    saver_values.py         what the nodes of a saver store: which key goes into which variable
    variables.py            the variables of a graph, from its collections and nodes

Writing, from variables and savers to bytes:

    nodes.py, variable_nodes.py, saver_nodes.py     the nodes, as TensorFlow makes them
    ops.pbtxt                                       the operations they use
    export_options.py                               the options of an export, and the file

Both: model.py (variables and savers as plain values), collection_defs.py and graph_collections.py (collections).
Changing what was read: splicing.py (parts of messages), rewriting.py, rescoping.py and scopes.py (names).
Showing it: summary.py, dot.py.

Source: tensorflow/core/protobuf/meta_graph.proto.
"""
