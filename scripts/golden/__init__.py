"""Code of scripts/make_golden.py: one module per kind of folder, and shared modules.

`fixed`, `trained` and `composed` list the folders; `recipe` defines a folder and writes its expected.json; `compare`
compares two versions of a folder; `tables` and `messages` edit files byte by byte. The modules of `in_tensorflow` run
only in the TensorFlow process. Nothing here imports torch or torch_tfckpt: the checkpoints must not depend on the
package that they test.
"""
