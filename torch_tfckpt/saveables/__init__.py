"""What is saved and restored: one `SaveableObject` for each thing that takes values, under its names in a file.

May use: torch tensors, modules and optimizers.
May not: write files, or know who saves.
"""
