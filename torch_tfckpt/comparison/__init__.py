"""A torch module and an imported graph on the same inputs: do they compute the same, and where do they part?

    compare          the public function and its report
    samples          the inputs: random ones, or those of the caller
    sides           the graph and the module, each run on a sample
    module_calls     run a module, and record or replace the outputs of its layers
    graph_tensors    all tensors that a graph computes, found by value
    arrangements     the ways in which torch and TensorFlow arrange the same tensor
    parting          the first layer whose output differs

May use: imported graphs, graph_run, torch modules. May not: depend on conversion, Checkpoint or the command line.
"""
