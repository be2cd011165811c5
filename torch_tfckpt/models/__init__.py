"""Load TensorFlow weights into torch modules: match stored tensors with parameters, convert layouts.

    loading, load_plan, saving        load_model, what it loads, save_model
    keras_torch                       Keras models on Keras's torch backend
    keras_objects, checkpoint         the objects of a module as Keras names them; Checkpoint(naming="keras")
    key_mapper, key_rules, map_file   rules for names, and their form as TOML
    target_templates, rule_scopes     targets that translate numbers and words; the scope of the stored names
    presets/                          map files for families of models
    base_module                       rules for a model with heads, applied to its base model
    mapped_sources; rule_inverse, inverted_rules, written_variables
                                      apply rules to load, and their inverses to save
    layouts, axis_patterns, assembly  transforms of one tensor; tensors that are made from several
    layer_names, recurrent_layers, tensor_origins
                                      TensorFlow's variables of a layer, and the tensors made from them
    stored_names, stored_copies, sources
                                      find each tensor of a module in the checkpoint
    semantics, norm_semantics, layer_semantics, flattened_maps, tensorflow_parts
                                      what weights do not show, such as the epsilon of a BatchNorm
    keras_semantics                   the same, compared with the configuration of a Keras file
    initialization, assignment_layouts
                                      init_from_checkpoint: stored names to variables, as in TensorFlow
    inference; infer_units, infer_classes, infer_names, infer_matching, infer_rules, infer_refusals
                                      KeyMapper.infer: find rules by kinds, shapes, names and numbers
    factories, skeletons              build a module from "pkg.mod:factory"; rules to be completed by hand
    hints, saved_optimizers           what to pass if a tensor does not fit; how to restore a Saver's optimizer state
    file_reader                       files of other formats, read like checkpoints
    skeleton, leaf_names              a module made from rules alone; what the last part of a name tells
    targets, filling                  the tensors of a module that can be loaded; put values into them
    auxiliary, named_kinds            identify variables that are not weights, by object and by name
    named_slots, averages             find the slots and the moving average of a variable
    optimizer_slots, named_optimizers, written_slots
                                      the state of the parameters of an optimizer: load, find by name, save

May use: torch modules and optimizers, `optimizers`, the checkpoint reader, savers and object graphs (to save).
Must not use: imported graphs, managers, conversion of whole files.
"""
