"""Whole files: convert, compare, merge and verify them, select tensors, compute statistics.

    convert, target_writing, convert_report
                                      the steps of a conversion; write the target; its report
    casting, damage, overlap          other dtypes; what can be read of a damaged file; targets that are sources
    selection, selected_source        which tensors, under which names; the source limited to them
    graph_editing, state_editing      object graphs and stored states that match the tensors that are left
    training_state, pickled_state, parameter_order
                                      what torch.save wrote, under the names that a Saver uses
    turning, to_torch, to_tensorflow  names and layouts: what is asked for, and both directions
    to_keras, keras_matching          weights for Keras, in the order of a Keras file; find its variables
    torch_optimizer, written_check    the state of an optimizer; whether a module loads the file
    deferred, deferred_source         tensors that are computed when they are written
    key_names, layout_remarks         other names of objects; that layouts are still TensorFlow's
    diff, tensor_statistics           compare two files; statistics of a tensor
    average, average_sources, mean    average checkpoints: the file, which ones, one tensor
    merge, verify                     join the parts of a checkpoint; verify checksums

May use: every file format (`foreign_files`), checkpoints, modules and rules (`models`).
May not: depend on Savers, Checkpoints or the command line.
"""
