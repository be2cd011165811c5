"""Meta graphs as users see them: import one as tensors and a saver, export one.

May use: meta graphs, savers, saveables, torch tensors.
May not: know models, Checkpoints or conversion.
"""
