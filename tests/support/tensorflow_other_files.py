"""TensorFlow's and Keras's files that are not checkpoints, written by TensorFlow. Runs in TensorFlow's process.

    python tests/support/tensorflow_other_files.py DIRECTORY

writes the files of tests/foreign_files/golden that come from TensorFlow.
"""

import sys
from pathlib import Path


def write(directory: str) -> dict[str, str]:
    """Write one file of each kind; returns name -> name of its FileKind."""
    import keras  # type: ignore[import-untyped, import-not-found, unused-ignore]
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from tensorflow.python.framework import convert_to_constants  # type: ignore[import-untyped, import-not-found, unused-ignore]

    folder = Path(directory)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="fc")])
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.save_weights(folder / "model.weights.h5")
    (folder / "model.json").write_text(model.to_json())
    function = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec([1, 3]))
    graph = convert_to_constants.convert_variables_to_constants_v2(function).graph.as_graph_def()
    (folder / "frozen.pb").write_bytes(graph.SerializeToString())
    (folder / "frozen.pbtxt").write_text(str(graph))
    (folder / "model.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    with tf.io.TFRecordWriter(str(folder / "data.tfrecord")) as records:
        records.write(b"one record")
    events = tf.summary.create_file_writer(str(folder / "events"))
    events.close()
    (written,) = (folder / "events").iterdir()
    written.rename(folder / "events.out.tfevents")
    (folder / "events").rmdir()
    return {
        "model.keras": "KERAS",
        "model.h5": "KERAS_HDF5",
        "model.weights.h5": "KERAS_HDF5",
        "model.json": "KERAS_CONFIG",
        "frozen.pb": "GRAPH",
        "frozen.pbtxt": "GRAPH_TEXT",
        "model.tflite": "TFLITE",
        "data.tfrecord": "TFRECORD",
        "events.out.tfevents": "EVENTS",
    }


if __name__ == "__main__":
    write(sys.argv[1])
