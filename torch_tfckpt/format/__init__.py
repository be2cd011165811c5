"""How bytes are laid out, and nothing else: no torch, no files, no clock."""
