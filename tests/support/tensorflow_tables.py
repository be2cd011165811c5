"""Write graphs with lookup tables, and run them. Runs in the TensorFlow process only."""

import os
from typing import Any

import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor
from tensorflow_side import from_tensorflow

v1 = tf.compat.v1


def write_tables_of_version_1(directory: str, vocabulary: str, words: list[bytes]) -> list[RawTensor]:
    """Write a .meta file with tables, and return what they give for `words`: see the names of the outputs."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.string, [None], name="x")
        constant = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer([b"a", b"b", b"c"], tf.constant([1.5, 2.5, 3.5])), -1.0
        )
        file = tf.lookup.StaticVocabularyTable(
            tf.lookup.TextFileInitializer(
                vocabulary, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            ),
            3,
        )
        names = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                vocabulary, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
            ),
            "?",
        )
        outputs = [
            tf.identity(constant.lookup(x), "constant"),
            tf.identity(file.lookup(x), "file"),
            tf.identity(names.lookup(file.lookup(x)), "names"),
            tf.identity(file.size(), "size"),
        ]
        tf.Variable(1.0, name="w", use_resource=True)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        found = session.run(outputs, {x: words})
        v1.train.Saver().save(session, os.path.join(directory, "model"))
        return [RawTensor.of(each) for each in found]


def write_changing_tables(directory: str, words: list[bytes]) -> list[list[RawTensor]]:
    """Write a .meta file whose saver stores two tables, with two checkpoints; return what they give for `words`.

    The node "learn" inserts the feeds "x" and "y" into the first table.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        x, y = v1.placeholder(tf.string, [None], name="x"), v1.placeholder(tf.int64, [None], name="y")
        numbers = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1, name="numbers")
        rows = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, [0.0, 0.5], name="rows")
        outputs = [
            tf.identity(numbers.lookup(x), "number"),
            tf.identity(rows.lookup(numbers.lookup(x)), "row"),
            tf.identity(numbers.size(), "size"),
        ]
        tf.group(numbers.insert(x, y), name="learn")
        put = rows.insert(y, tf.stack([tf.cast(y, tf.float32)] * 2, 1))
        tf.Variable(1.0, name="w", use_resource=True)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver()
        found = []
        for step, known in enumerate((words[:2], words[1:4])):
            learnt = {x: known, y: range(step, step + len(known))}
            session.run(["learn", put], learnt)
            saver.save(session, os.path.join(directory, "model"), step)
            found.append([RawTensor.of(each) for each in session.run(outputs, {x: words})])
        return found


def read_changing_tables(prefix: str, words: list[bytes]) -> list[RawTensor]:
    """Return what the tables of `write_changing_tables` give for `words` after a restore."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        outputs = ["number:0", "row:0", "size:0"]
        return [RawTensor.of(each) for each in session.run(outputs, {"x:0": words})]


class _Model(tf.Module):  # type: ignore[misc]
    def __init__(self, vocabulary: str) -> None:
        super().__init__()
        self.file = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(vocabulary, tf.string, 0, tf.float32, 1, delimiter=","),
            -1.0,
        )
        self.changing = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 7)
        self.rows = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, [0.0, 0.5])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])  # type: ignore[untyped-decorator, unused-ignore]
    def __call__(self, words: Any) -> dict[str, Any]:
        numbers = self.changing.lookup(words)
        return {
            "file": self.file.lookup(words),
            "numbers": numbers,
            "rows": self.rows.lookup(numbers),
            "size": self.changing.size(),
        }


def write_tables_of_version_2(directory: str, vocabulary: str, words: list[bytes]) -> dict[str, RawTensor]:
    """Write a SavedModel with tables in a file and in the checkpoint, and return what they give for `words`."""
    model = _Model(vocabulary)
    model.changing.insert([b"a", b"c", b""], tf.constant([1, 2, 3], tf.int64))
    model.rows.insert(tf.constant([2, 7], tf.int64), tf.constant([[1.0, 2.0], [3.0, 4.0]]))
    tf.saved_model.save(model, directory, signatures=model.__call__)
    return {name: from_tensorflow(value) for name, value in model(tf.constant(words)).items()}
