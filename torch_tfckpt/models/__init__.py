"""Weights of TensorFlow models in torch modules: which stored tensor is which parameter, and in which layout?

May use: torch modules and optimizers, the checkpoint reader, savers (to save).
May not: know imported graphs, managers or conversion of whole files.
"""
