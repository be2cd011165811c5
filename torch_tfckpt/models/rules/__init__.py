"""Rules that say which variable of a checkpoint becomes which tensor of a module, and back.

    key_mapper, rule_set, key_rules   the user's KeyMapper, the set of checked rules, a single rule
    map_file, map_file_skeleton       their form as TOML; a file without targets, to be completed by hand
    target_templates, rule_scopes     targets that translate numbers and words; the scope of the stored names
    module_rules, joined_names        rules for whole modules; one tensor joined from several
    base_module                       rules for a model with heads, applied to its base model
    rule_inverse, inverted_rules      the inverses of rules, to save

For what these may import, see `models`.
"""
