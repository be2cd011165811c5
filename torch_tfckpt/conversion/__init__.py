"""Whole files: convert, compare, merge and verify them, select tensors, compute statistics.

May use: every file format (`foreign_files`), checkpoints, name mapping.
May not: depend on Savers, Checkpoints or the command line.
"""
