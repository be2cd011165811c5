"""Findings: what the weights do not show, such as the epsilon of a BatchNorm, and a module may have otherwise.

    semantics                         the codes, and the report of all findings
    norm_semantics, layer_semantics   norms; other layers
    flattened_maps                    Linear layers after a flattened feature map
    tensorflow_parts                  what the names in a checkpoint say of its program
    symbolic_run                      the operations of a forward method
    keras_semantics, activations, keras_flattening
                                      settings, compared with the configuration of a Keras file

For what these may import, see `models`.
"""
