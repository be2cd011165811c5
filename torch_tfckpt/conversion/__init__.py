"""Whole files: convert, compare, merge and verify them, select tensors, compute statistics.

    convert, convert_report           the steps of a conversion, and its report
    turning, to_torch, to_tensorflow  names and layouts: what is asked for, and both directions
    torch_optimizer, written_check    the state of an optimizer; whether a module loads the file
    deferred, deferred_source         tensors that are computed when they are written
    key_names, layout_remarks         other names of objects; that layouts are still TensorFlow's

May use: every file format (`foreign_files`), checkpoints, modules and rules (`models`).
May not: depend on Savers, Checkpoints or the command line.
"""
