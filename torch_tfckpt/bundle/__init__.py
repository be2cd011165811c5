"""Tensors <-> checkpoint files: version 2 (reader, writer, merge), version 1 (slices_reader, slices_writer)."""
