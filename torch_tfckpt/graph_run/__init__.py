"""TensorFlow graphs as torch.fx.GraphModules.

    requests       what the wanted outputs need; what is missing
    likely_outputs the inputs of a graph, and what a user probably wants
    modules        from a request to a module
    sessions       modules that are kept between calls with the same fetches and feeds

From nodes to steps:

    flattening     from the outputs back to what is fed; function calls are inlined
    folding        small integers that are known before the graph runs
    structure      loops and conditions of TensorFlow 1; what is needed
    inference      dropout and statistics of the batch are turned off
    steps          the records of these

From steps to torch.fx:

    building       the order in which steps are built
    bodies         fx graphs under construction: the module's, and those of loops and branches
    calls          steps that are calls of registered operations
    handlers       constants, identities, variables, assignments, tables
    tables         lookup tables, and where their contents come from
    control_flow_v1, control_flow_v2, carried       loops and conditions
    runtime, state                                  what the modules call
    prepared       what depends only on variables, computed once; convolutions with the steps after them
    tracing                                         modules that were pickled

Values: attributes, constants, declarations, feeds, variable_source. Errors: failures.

May use: graph_ops, meta_graph, format, torch. May not: import savers or read files.
"""
