"""The folders of trained models: small networks that read scikit-learn's digits."""

from golden.recipe import Recipe, in_tensorflow

TRAINED = (
    Recipe("digits-cnn", "v2", "numbered checkpoints of a TensorFlow 1 CNN with Adam, their meta graphs and state file",
           "model.ckpt-216", in_tensorflow("graph_models.write_cnn"), earlier=("model.ckpt-144",)),
    Recipe("digits-v1", "v1", "a version 1 file, `checkpoint-288`, and the state file `checkpoint`; momentum",
           "checkpoint-288", in_tensorflow("graph_models.write_version_1")),
    Recipe("digits-v1-sharded", "v1", "two version 1 shards; the graph has a variable that is not saved",
           "export-?????-of-00002", in_tensorflow("graph_models.write_sharded_version_1")),
    Recipe("digits-partitioned", "v2", "partitioned variables and Adagrad slots in two shards, with the meta graph",
           "model.ckpt-288", in_tensorflow("graph_models.write_partitioned")),
    Recipe("digits-tf1-savedmodel", "savedmodel", "a SavedModel of a session: variables by name, an asset, a table",
           "variables/variables", in_tensorflow("graph_models.write_saved_model")),
    Recipe("digits-transformer", "v2", "250 tensors in two shards, one of them tiny, without a meta graph",
           "model.ckpt-288", in_tensorflow("transformer.write")),
    Recipe("digits-checkpoint", "object", "tf.train.CheckpointManager over a Keras 3 model, its optimizer and a step",
           "ckpt-2", in_tensorflow("keras_models.write_checkpoint")),
    Recipe("digits-keras2-weights", "object", "weights of Keras 2 in TensorFlow's format, with the slots of Adam",
           "weights", in_tensorflow("keras_models.write_weights_of_keras_2")),
    Recipe("digits-keras2-loss-scale", "object", "Keras 2 with mixed precision: a loss-scale optimizer; two shards",
           "ckpt", in_tensorflow("keras_models.write_loss_scale_of_keras_2")),
    Recipe("digits-keras2-savedmodel", "savedmodel", "a SavedModel of Keras 2 with optimizer, metrics and fingerprint",
           "variables/variables", in_tensorflow("keras_models.write_saved_model_of_keras_2")),
    Recipe("digits-keras3-savedmodel", "savedmodel", "a SavedModel that Keras 3 exported",
           "variables/variables", in_tensorflow("keras_models.write_saved_model_of_keras_3")),
    Recipe("digits-module", "savedmodel", "a SavedModel of a tf.Module: signatures, one with a default, an asset, a "
           "table that reads it, variables of strings, int32 and int64", "variables/variables",
           in_tensorflow("module_model.write")),
)  # fmt: skip
