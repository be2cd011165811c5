"""tf.train.Saver for torch: save and delete numbered checkpoints of named variables, with meta graphs.

May use: save_restore, directory, meta graphs, threads, the clock.
May not: depend on Checkpoints (object-based), models or conversion.
"""
