"""Layers: how the variables of a layer of TensorFlow become the tensors of a layer of torch.

    layouts, axis_patterns            transforms of one tensor, and their notation
    assembly                          tensors made from several variables: joined, split, filled
    boxes                             a part of such a tensor, for one rank of several
    layer_names, recurrent_layers     the variables that TensorFlow has for a layer
    tensor_origins                    from which variables a tensor is made

For what these may import, see `models`.
"""
