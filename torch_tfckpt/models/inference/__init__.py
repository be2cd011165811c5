"""KeyMapper.infer: find the rules for a checkpoint and a module by kinds, shapes, names and numbers.

    infer                             the whole: candidates, choices, rules
    units, scopes, classes            the layers on either side: their variables, scopes and classes
    names, matching                   similar names; which layer fits which
    flattening                        Linear layers after a flattened map
    proposed_rules, refusals          the rules; what is said if there are several ways

For what these may import, see `models`.
"""
