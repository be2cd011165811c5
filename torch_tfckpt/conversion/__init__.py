"""Whole files: convert one into another, compare two, select tensors, compute statistics.

May use: every file format (`foreign_files`), checkpoints, mapping of names.
May not: know Savers, Checkpoints or the command line.
"""
