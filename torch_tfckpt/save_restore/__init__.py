"""Write or restore a list of saveables, for a Saver or a Checkpoint.

May use: bundles, version 1 writers, saveables, threads.
May not: depend on state files, retention, the Saver or the Checkpoint.
"""
