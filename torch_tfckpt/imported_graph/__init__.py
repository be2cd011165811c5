"""The public interface to meta graphs: import one as tensors and a saver, export one.

May use: meta graphs, savers, saveables, torch tensors.
May not: depend on models, Checkpoint or conversion.
"""
