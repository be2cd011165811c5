"""How are bytes laid out? Encoders and decoders of every part of a checkpoint file.

May use: bytes, numpy, protobuf.
May not: import torch, open files, read the clock, or allocate by a number from a file before checking it.
"""
