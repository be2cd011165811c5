"""The command `tfckpt`: what does a person type, and what do they see?

May use: everything below, argparse, rich, stdout and stderr.
May not: hold a rule that a program would also need; nothing imports this package but `inspect_checkpoint`.
"""
