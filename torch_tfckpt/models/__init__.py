"""Load TensorFlow weights into torch modules: match stored tensors with parameters, convert layouts.

    loading, load_plan, reading       load_model; what it loads, and from which tensors; their new values
    saving, extra_values              save_model; values that it stores in addition
    keras_torch                       Keras models on Keras's torch backend
    keras_objects, checkpoint         the objects of a module as Keras names them; Checkpoint(naming="keras")
    key_mapper, rule_set, key_rules   rules for names: the user's KeyMapper, the set of checked rules, a single rule
    map_file, map_file_skeleton       their form as TOML; a file without targets, to be completed by hand
    target_templates, rule_scopes     targets that translate numbers and words; the scope of the stored names
    presets/                          map files for families of models
    base_module                       rules for a model with heads, applied to its base model
    module_rules, joined_names, mapped_sources, implied_sources
                                      apply rules to load; the source of one tensor
    rule_inverse, inverted_rules, written_variables
                                      the inverses of rules, to save
    layouts, axis_patterns, assembly  transforms of one tensor; tensors made from several variables
    layer_names, recurrent_layers, tensor_origins
                                      TensorFlow's variables of a layer, and the tensors made from them
    stored_names, stored_copies, sources
                                      find each tensor of a module in the checkpoint
    semantics, norm_semantics, layer_semantics, flattened_maps, tensorflow_parts
                                      what weights do not show, such as the epsilon of a BatchNorm
    symbolic_run                      the operations of a forward method
    keras_semantics, activations, keras_flattening
                                      settings, compared with the configuration of a Keras file
    initialization, assignment_layouts
                                      init_from_checkpoint: stored names to variables, as in TensorFlow
    inference; infer_units, infer_scopes, infer_classes, infer_names, infer_matching, infer_rules, infer_refusals,
    infer_flattening
                                      KeyMapper.infer: find rules by kinds, shapes, names and numbers
    factories, module_of_rules        build a module from "pkg.mod:factory", or from rules alone
    hints, saved_optimizers           what to pass if a tensor does not fit; how to restore a Saver's optimizer state
    file_reader                       files of other formats, read like checkpoints
    leaf_names                        what the last part of a name implies
    targets, filling                  the tensors of a module that can be loaded; put values into them
    auxiliary, named_kinds            identify variables that are not weights, by object and by name
    named_slots, averages             find the slots and the moving average of a variable
    optimizer_slots, named_optimizers, written_slots
                                      the state of the parameters of an optimizer: load, find by name, save

May use: torch modules and optimizers, `optimizers`, the checkpoint reader, savers and object graphs (to save).
Must not use: imported graphs, managers, conversion of whole files.
"""
