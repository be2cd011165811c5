"""tf.train.Saver for torch: numbered checkpoints of named variables, their deletion, and their meta graphs.

May use: save_restore, directory, meta graphs, threads, the clock.
May not: know Checkpoints (object-based), models or conversion.
"""
