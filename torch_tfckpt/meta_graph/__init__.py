"""Meta graphs: the `.meta` file of a checkpoint and the graphs in a SavedModel, as data.

May use: protobuf, the format of graphs. May not: import torch, or be imported by `objects`, `models` or `conversion`.

Reading, from bytes to the values that a saver stores:

    files.py, text.py       find the file, detect binary or text, decode its messages
    graph_files.py          the same for files that contain only a graph
    raw.py                  one MetaGraphDef as bytes, its parts decoded on request
    saver_values.py         the values that a saver's nodes store: which key is restored into which variable
    variables.py            the variables of a graph, from its collections and nodes
    bound_variables.py      the variables of a graph or of a SavedModel's objects, and the nodes that refer to them

Writing, from variables and savers to bytes:

    nodes.py, variable_nodes.py, saver_nodes.py     the nodes, as TensorFlow creates them
    ops.pbtxt                                       the operations they use
    export_options.py                               the options of an export, and the file

Both: model.py (variables and savers as plain values), collection_defs.py and graph_collections.py (collections).
Changing a meta graph: splicing.py (parts of messages), rewriting.py, rescoping.py and scopes.py (names).
Displaying a meta graph: summary.py, dot.py.

Source: tensorflow/core/protobuf/meta_graph.proto.
"""
