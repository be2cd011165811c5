"""tf.train.Saver for torch: numbered checkpoints of named variables, their deletion, and their meta graphs.

May use: save_restore, directory, meta graphs, threads, the clock.
May not: depend on Checkpoints (object-based), models or conversion.
"""
