"""tf.train.Checkpoint for torch: save and restore a tree of Python objects through an object graph.

May use: saveables, save_restore, the checkpoint reader, threads, the clock.
May not: depend on the Saver, its records or meta graphs.
"""
