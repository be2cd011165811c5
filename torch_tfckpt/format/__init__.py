"""Layout of bytes: encoders and decoders for every part of a checkpoint file.

May use: bytes, numpy, protobuf.
Must not: import torch, open files, read the clock, or allocate by a number from a file before checking it.
"""
