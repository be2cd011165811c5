"""Weights of TensorFlow models in torch modules: which stored tensor is which parameter, and in which layout?

    loading, saving                   load_model, save_model; report: what was loaded and what not
    key_mapper, layouts, layer_names  rules for names; how axes are moved; TensorFlow's names for a layer's variables
    stored_names, sources             where each tensor of a module is stored; targets: what takes it
    auxiliary                         variables that are not weights; optimizer_slots: the optimizer's variables

May use: torch modules and optimizers, `optimizers`, the checkpoint reader, savers (to save).
May not: know imported graphs, managers or conversion of whole files.
"""
