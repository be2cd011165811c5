"""How tensors leave and reach the device: host bytes, in bounded memory. Nothing here knows a checkpoint key."""
