"""The command `tfckpt`: its arguments and its output.

May use: everything below, argparse, rich, stdout and stderr.
May not: hold a rule that a program would also need; nothing imports this package but `inspect_checkpoint`.
"""
