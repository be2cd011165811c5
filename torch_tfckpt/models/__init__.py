"""Load TensorFlow weights into torch modules: match stored tensors with parameters, convert layouts.

    loading, load_plan, reading       load_model; what it loads, and from which tensors; their new values
    saving, extra_values              save_model; values that it stores in addition
    written_variables                 the variables that save_model writes for a module
    rules/, presets/                  KeyMapper: rules for names and their files; map files for families of models
    mapped_sources, implied_sources   the source of one tensor, by rules and without
    stored_names, stored_copies, sources
                                      find each tensor of a module in the checkpoint
    layers/                           layouts, and tensors made from several variables
    findings/                         what weights do not show: epsilon, padding, order of a flattened map
    inference/                        KeyMapper.infer: rules by kinds, shapes, names and numbers
    auxiliary/                        variables that are not weights: slots, averages, counters
    initialization, assignment_layouts
                                      init_from_checkpoint: stored names to variables, as in TensorFlow
    factories, module_of_rules        build a module from "pkg.mod:factory", or from rules alone
    keras_torch                       Keras models on Keras's torch backend
    keras_objects, checkpoint         the objects of a module as Keras names them; Checkpoint(naming="keras")
    keras_saving, keras_like, keras_like_objects, source_inverse
                                      save for a Keras model, in the order of a file of that model
    hints                             what to pass if a tensor does not fit
    file_reader                       files of other formats, read like checkpoints
    leaf_names                        what the last part of a name implies
    targets, filling                  the tensors of a module that can be loaded; put values into them

May use: torch modules and optimizers, `optimizers`, the checkpoint reader, savers and object graphs (to save).
Must not use: imported graphs, managers, conversion of whole files.
"""
