"""Files that torch users have (.safetensors, .pt, .npz) and TensorFlow checkpoints, tensor by tensor.

May use: tensors, storage, the checkpoint reader and writer. One tensor at a time, in bounded memory.
May not: decide what is converted into what (`conversion` does), or know state files.
"""
