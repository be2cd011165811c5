"""Variables that are not weights: slots of optimizers, moving averages, counters.

    recognition, named_kinds          what each variable is, by object and by name
    named_slots, averages             find the slots and the moving average of a variable
    optimizer_slots, named_optimizers, written_slots
                                      the state of the parameters of an optimizer: load, find by name, save
    saved_optimizers                  how to restore the optimizer state of a Saver

For what these may import, see `models`.
"""
