"""Python objects as nodes of an object graph: modules, tensors, optimizers, containers, plain values.

May use: torch objects, saveables, the stored object graph.
May not: read or write files; torch_tfckpt.objects does.
"""
