"""Checkpoints and the files that torch users have: .safetensors, .pt and .npz, read and written tensor by tensor."""
