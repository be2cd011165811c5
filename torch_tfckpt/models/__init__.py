"""Load TensorFlow weights into torch modules: match stored tensors with parameters, convert layouts.

    loading, saving                   load_model, save_model
    key_mapper, key_rules, map_file   rules for names, and their form as TOML
    mapped_sources; rule_inverse, inverted_rules, written_variables
                                      apply rules to load; and backwards, to save
    layouts, layer_names              orders of axes; TensorFlow's names for the variables of a layer
    stored_names, sources             find each tensor of a module in the checkpoint
    semantics, norm_semantics, layer_semantics, flattened_maps, tensorflow_parts
                                      what weights do not tell, such as the epsilon of a BatchNorm
    hints, saved_optimizers           what to pass if a tensor does not fit; how to restore a Saver's optimizer state
    targets, filling                  the tensors of a module that can be loaded; put values into them
    auxiliary, named_kinds            variables that are not weights, by objects and by names
    named_slots, averages             what is a slot of a variable, and what is its moving average
    optimizer_slots, named_optimizers the state of the parameters of an optimizer

May use: torch modules and optimizers, `optimizers`, the checkpoint reader, savers (to save).
Must not use: imported graphs, managers, conversion of whole files.
"""
