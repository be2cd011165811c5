"""The command `tfckpt`: its arguments and its output.

May use: everything below, argparse, rich, stdout and stderr.
May not: contain logic that a program would also need. Only `inspect_checkpoint` imports this package.
"""
