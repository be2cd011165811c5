"""What scripts/make_golden.py writes: one module per kind of folder, and what they share.

`fixed`, `trained` and `composed` list the folders; `recipe` defines what a folder is and describes it in expected.json;
`compare` holds two versions of a folder against each other; `tables` and `messages` change files byte by byte. The
modules of `in_tensorflow` run in the TensorFlow process only. Nothing here imports torch or torch_tfckpt: the
checkpoints must not depend on the package that they test.
"""
