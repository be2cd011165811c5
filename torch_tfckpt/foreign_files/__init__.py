"""File formats of `convert`: .safetensors, .pt, .npz and TensorFlow's own, each a TensorSource and a TensorSink.

Keras's .weights.h5 is only written here (`keras_weights`); `keras_files` reads it.

May use: tensors, storage, the checkpoint reader and writer. One tensor at a time, in bounded memory.
May not: decide which files are converted (`conversion` does), or use state files. `formats` lists the formats.
"""
