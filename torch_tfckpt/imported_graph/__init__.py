"""The public interface to meta graphs: import them as tensors and a saver, run them in torch, and export them.

May use: meta graphs, graph_run, savers, saveables, torch tensors.
May not: depend on models, Checkpoint or conversion.
"""
