"""The public interface to meta graphs: import them as tensors and a saver, and export them.

May use: meta graphs, savers, saveables, torch tensors.
May not: depend on models, Checkpoint or conversion.
"""
