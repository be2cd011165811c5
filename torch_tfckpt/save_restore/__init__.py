"""Write or restore a list of saveables, whoever owns it: a Saver or a Checkpoint.

May use: bundles, version 1 writers, saveables, threads.
May not: know state files, retention, the Saver or the Checkpoint.
"""
