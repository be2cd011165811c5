"""Byte layouts: encoders and decoders for every part of a checkpoint file.

May use: bytes, numpy, protobuf.
Must not: import torch, open files, read the clock, or allocate memory of a size taken from a file
before checking that size.
"""
