"""What is saved and restored: one `SaveableObject` for each thing that takes values, under its names in a file."""
