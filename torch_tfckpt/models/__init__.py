"""Weights of TensorFlow models and modules of torch: which stored tensor is which parameter, and in which layout."""
