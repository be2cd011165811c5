"""What Python objects are as nodes of an object graph: modules, tensors, containers, optimizers, plain values."""
