"""Language models of TensorFlow programs: their variables under the original names, and what they compute.

Written from the papers and from the names and shapes of released checkpoints, with plain TensorFlow operations, so that
they are a reference for what transformers computes with the converted weights. Each function of the first kind returns
the shapes of the variables, by name; each of the second takes their values and the inputs, and returns outputs. Sizes
are a dictionary with the same keys for all families; `heads` times `head` need not be `hidden` for T5 only.

Runs in the TensorFlow process, except the functions of shapes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Sizes = Mapping[str, int]
Shapes = dict[str, tuple[int, ...]]
Values = Mapping[str, Any]


def bert_shapes(sizes: Sizes, scope: str = "bert", layers: str = "encoder/layer_{}") -> Shapes:
    """BERT of google-research/bert: embeddings, encoder and pooler."""
    hidden = sizes["hidden"]
    shapes: Shapes = embedding_shapes(sizes, scope, hidden)
    for number in range(sizes["layers"]):
        shapes |= layer_shapes(sizes, f"{scope}/{layers.format(number)}")
    return shapes | dense_shapes(f"{scope}/pooler/dense", hidden, hidden)


def embedding_shapes(sizes: Sizes, scope: str, width: int) -> Shapes:
    """Three tables and a norm."""
    tables = {"word": sizes["vocabulary"], "position": sizes["positions"], "token_type": 2}
    found: Shapes = {f"{scope}/embeddings/{name}_embeddings": (rows, width) for name, rows in tables.items()}
    return found | norm_shapes(f"{scope}/embeddings/LayerNorm", width)


def layer_shapes(sizes: Sizes, scope: str) -> Shapes:
    """One layer of BERT or of ELECTRA."""
    hidden, inner = sizes["hidden"], sizes["inner"]
    shapes: Shapes = {}
    for part in ("query", "key", "value"):
        shapes |= dense_shapes(f"{scope}/attention/self/{part}", hidden, hidden)
    shapes |= dense_shapes(f"{scope}/attention/output/dense", hidden, hidden)
    shapes |= norm_shapes(f"{scope}/attention/output/LayerNorm", hidden)
    shapes |= dense_shapes(f"{scope}/intermediate/dense", hidden, inner)
    shapes |= dense_shapes(f"{scope}/output/dense", inner, hidden)
    return shapes | norm_shapes(f"{scope}/output/LayerNorm", hidden)


def bert_head_shapes(sizes: Sizes, width: int) -> Shapes:
    """Heads of run_pretraining.py. `width`: of the embeddings."""
    hidden = sizes["hidden"]
    transform = "cls/predictions/transform"
    shapes = dense_shapes(f"{transform}/dense", hidden, width) | norm_shapes(f"{transform}/LayerNorm", width)
    shapes |= {"cls/predictions/output_bias": (sizes["vocabulary"],)}
    return shapes | {"cls/seq_relationship/output_weights": (2, hidden), "cls/seq_relationship/output_bias": (2,)}


def albert_shapes(sizes: Sizes) -> Shapes:
    """ALBERT: smaller embeddings, and groups of layers that share their weights."""
    width, hidden, inner = sizes["embedding"], sizes["hidden"], sizes["inner"]
    shapes = embedding_shapes(sizes, "bert", width)
    shapes |= dense_shapes("bert/encoder/embedding_hidden_mapping_in", width, hidden)
    for group in range(sizes["groups"]):
        for each in range(sizes["inner_groups"]):
            scope = f"bert/encoder/transformer/group_{group}/inner_group_{each}"
            for part in ("query", "key", "value"):
                shapes |= dense_shapes(f"{scope}/attention_1/self/{part}", hidden, hidden)
            shapes |= dense_shapes(f"{scope}/attention_1/output/dense", hidden, hidden)
            shapes |= norm_shapes(f"{scope}/LayerNorm", hidden) | norm_shapes(f"{scope}/LayerNorm_1", hidden)
            shapes |= dense_shapes(f"{scope}/ffn_1/intermediate/dense", hidden, inner)
            shapes |= dense_shapes(f"{scope}/ffn_1/intermediate/output/dense", inner, hidden)
    return shapes | dense_shapes("bert/pooler/dense", hidden, hidden) | bert_head_shapes(sizes, width)


def electra_shapes(sizes: Sizes, generator: Sizes) -> Shapes:
    """ELECTRA: a discriminator, and a generator of other sizes that has the same embeddings."""
    width = sizes["embedding"]
    shapes = embedding_shapes(sizes, "electra", width)
    for scope, of in (("electra", sizes), ("generator", generator)):
        shapes |= dense_shapes(f"{scope}/embeddings_project", width, of["hidden"])
        for number in range(of["layers"]):
            shapes |= layer_shapes(of, f"{scope}/encoder/layer_{number}")
    shapes |= dense_shapes("discriminator_predictions/dense", sizes["hidden"], sizes["hidden"])
    shapes |= dense_shapes("discriminator_predictions/dense_1", sizes["hidden"], 1)
    shapes |= dense_shapes("generator_predictions/dense", generator["hidden"], width)
    shapes |= norm_shapes("generator_predictions/LayerNorm", width)
    return shapes | {"generator_predictions/output_bias": (sizes["vocabulary"],)}


def gpt2_shapes(sizes: Sizes) -> Shapes:
    """GPT-2: weights of convolutions of width 1."""
    hidden = sizes["hidden"]
    shapes: Shapes = {"model/wte": (sizes["vocabulary"], hidden), "model/wpe": (sizes["positions"], hidden)}
    shapes |= norm_shapes("model/ln_f", hidden, "g", "b")
    for number in range(sizes["layers"]):
        scope = f"model/h{number}"
        widths = {"attn/c_attn": (hidden, 3 * hidden), "attn/c_proj": (hidden, hidden)}
        widths |= {"mlp/c_fc": (hidden, sizes["inner"]), "mlp/c_proj": (sizes["inner"], hidden)}
        for name, (inputs, outputs) in widths.items():
            shapes |= {f"{scope}/{name}/w": (1, inputs, outputs), f"{scope}/{name}/b": (outputs,)}
        shapes |= norm_shapes(f"{scope}/ln_1", hidden, "g", "b") | norm_shapes(f"{scope}/ln_2", hidden, "g", "b")
    return shapes


def t5_shapes(sizes: Sizes, *, newer: bool) -> Shapes:
    """T5 of Mesh TensorFlow. `newer`: 1.1, with gates, another name for norms, and a matrix for the logits."""
    hidden, attention, inner = sizes["hidden"], sizes["heads"] * sizes["head"], sizes["inner"]
    norm = "rms_norm" if newer else "layer_norm"
    shapes: Shapes = {"shared/embedding": (sizes["vocabulary"], hidden)}
    for part, kinds in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for block in range(sizes["layers"]):
            for layer, kind in enumerate([*kinds, "DenseReluDense"]):
                scope = f"{part}/block_{block:03}/layer_{layer:03}"
                shapes[f"{scope}/{norm}/scale"] = (hidden,)
                if kind == "DenseReluDense":
                    for name in ("wi_0", "wi_1") if newer else ("wi",):
                        shapes[f"{scope}/{kind}/{name}/kernel"] = (hidden, inner)
                    shapes[f"{scope}/{kind}/wo/kernel"] = (inner, hidden)
                    continue
                shapes |= {f"{scope}/{kind}/{name}": (hidden, attention) for name in "qkv"}
                shapes[f"{scope}/{kind}/o"] = (attention, hidden)
            if block == 0:
                bias = f"{part}/block_000/layer_000/SelfAttention/relative_attention_bias"
                shapes[bias] = (sizes["heads"], sizes["buckets"])
        shapes[f"{part}/{norm if newer else 'final_layer_norm'}/scale"] = (hidden,)
    return shapes | ({"decoder/logits/kernel": (hidden, sizes["vocabulary"])} if newer else {})


def dense_shapes(scope: str, inputs: int, outputs: int) -> Shapes:
    return {f"{scope}/kernel": (inputs, outputs), f"{scope}/bias": (outputs,)}


def norm_shapes(scope: str, width: int, gamma: str = "gamma", beta: str = "beta") -> Shapes:
    return {f"{scope}/{gamma}": (width,), f"{scope}/{beta}": (width,)}


def run(family: str, values: Mapping[str, np.ndarray], sizes: Sizes, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of a model, computed by TensorFlow."""
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

    model = _Model({name: tf.constant(value) for name, value in values.items()}, sizes, tf)
    return {name: np.asarray(value) for name, value in getattr(model, family)(tf.constant(ids)).items()}


class _Model:
    def __init__(self, values: Values, sizes: Sizes, tf: Any) -> None:
        self.values, self.sizes, self.tf = values, sizes, tf

    def bert(self, ids: Any) -> dict[str, Any]:
        """Tanh form of GELU, epsilon 1e-12."""
        x = self._embed("bert", ids)
        for number in range(self.sizes["layers"]):
            x = self._layer(f"bert/encoder/layer_{number}", x, self._tanh_gelu)
        pooled = self.tf.tanh(self._dense("bert/pooler/dense", x[:, 0]))
        return {"hidden": x, "pooled": pooled, **self._bert_heads(x, pooled)}

    def albert(self, ids: Any) -> dict[str, Any]:
        x = self._dense("bert/encoder/embedding_hidden_mapping_in", self._embed("bert", ids))
        per_group = self.sizes["layers"] // self.sizes["groups"]
        for number in range(self.sizes["layers"]):
            for each in range(self.sizes["inner_groups"]):
                scope = f"bert/encoder/transformer/group_{number // per_group}/inner_group_{each}"
                attended = self._attend(f"{scope}/attention_1/self", x, x)
                x = self._norm(f"{scope}/LayerNorm", x + self._dense(f"{scope}/attention_1/output/dense", attended))
                inner = self._tanh_gelu(self._dense(f"{scope}/ffn_1/intermediate/dense", x))
                x = self._norm(
                    f"{scope}/LayerNorm_1", x + self._dense(f"{scope}/ffn_1/intermediate/output/dense", inner)
                )
        pooled = self.tf.tanh(self._dense("bert/pooler/dense", x[:, 0]))
        return {"hidden": x, "pooled": pooled, **self._bert_heads(x, pooled)}

    def electra(self, ids: Any) -> dict[str, Any]:
        """Exact form of GELU."""
        x = self._electra_encoder("electra", ids)
        inner = self._exact_gelu(self._dense("discriminator_predictions/dense", x))
        return {"hidden": x, "logits": self._dense("discriminator_predictions/dense_1", inner)[..., 0]}

    def electra_generator(self, ids: Any) -> dict[str, Any]:
        x = self._electra_encoder("generator", ids)
        x = self._exact_gelu(self._dense("generator_predictions/dense", x))
        x = self._norm("generator_predictions/LayerNorm", x)
        table = self.values["electra/embeddings/word_embeddings"]
        logits = self.tf.matmul(x, table, transpose_b=True)
        return {"logits": logits + self.values["generator_predictions/output_bias"]}

    def gpt2(self, ids: Any) -> dict[str, Any]:
        """Each position sees itself and earlier ones; norms come first; epsilon 1e-5."""
        tf, length = self.tf, ids.shape[1]
        x = tf.gather(self.values["model/wte"], ids) + self.values["model/wpe"][:length]
        hides = tf.constant(np.triu(np.full((length, length), -1e9, np.float32), 1))
        for number in range(self.sizes["layers"]):
            scope = f"model/h{number}"
            query, key, value = tf.split(self._conv(f"{scope}/attn/c_attn", self._gpt_norm(f"{scope}/ln_1", x)), 3, -1)
            scale = (query.shape[-1] // self.sizes["heads"]) ** -0.5
            x += self._conv(f"{scope}/attn/c_proj", self._attention(query, key, value, scale, hides))
            inner = self._tanh_gelu(self._conv(f"{scope}/mlp/c_fc", self._gpt_norm(f"{scope}/ln_2", x)))
            x += self._conv(f"{scope}/mlp/c_proj", inner)
        x = self._gpt_norm("model/ln_f", x)
        return {"hidden": x, "logits": tf.matmul(x, self.values["model/wte"], transpose_b=True)}

    def t5(self, ids: Any) -> dict[str, Any]:
        """The decoder reads the same ids as the encoder."""
        x = self._t5_stack("encoder", ids, None)
        y = self._t5_stack("decoder", ids, x)
        if "decoder/logits/kernel" in self.values:
            return {"hidden": x, "logits": y @ self.values["decoder/logits/kernel"]}
        scaled = y * self.sizes["hidden"] ** -0.5
        return {"hidden": x, "logits": self.tf.matmul(scaled, self.values["shared/embedding"], transpose_b=True)}

    def garden(self, ids: Any) -> dict[str, Any]:
        """BERT with an axis for the heads in all weights of attention."""
        tf, values = self.tf, self.values
        x = tf.gather(values["word_embeddings/embeddings"], ids) + values["type_embeddings/embeddings"][0]
        x = self._norm("embeddings/layer_norm", x + values["position_embedding/embeddings"][: ids.shape[1]])
        for number in range(self.sizes["layers"]):
            scope = f"transformer/layer_{number}"
            query, key, value = (
                tf.einsum("bth,hnd->bntd", x, values[f"{scope}/self_attention/{part}/kernel"])
                + values[f"{scope}/self_attention/{part}/bias"][:, None]
                for part in ("query", "key", "value")
            )
            scores = tf.nn.softmax(tf.einsum("bntd,bnsd->bnts", query, key) * self.sizes["head"] ** -0.5)
            seen, output = tf.einsum("bnts,bnsd->btnd", scores, value), f"{scope}/self_attention/attention_output"
            x += tf.einsum("btnd,ndh->bth", seen, values[f"{output}/kernel"]) + values[f"{output}/bias"]
            x = self._norm(f"{scope}/self_attention_layer_norm", x)
            inner = self._tanh_gelu(self._dense(f"{scope}/intermediate", x))
            x = self._norm(f"{scope}/output_layer_norm", x + self._dense(f"{scope}/output", inner))
        pooled = tf.tanh(self._dense("pooler_transform", x[:, 0]))
        words = self._tanh_gelu(self._dense("cls/predictions/transform/dense", x))
        words = self._norm("cls/predictions/transform/LayerNorm", words)
        words = tf.matmul(words, values["word_embeddings/embeddings"], transpose_b=True)
        words += values["cls/predictions/output_bias/bias"]
        return {
            "hidden": x,
            "pooled": pooled,
            "words": words,
            "order": self._dense("predictions/transform/logits", pooled),
        }

    def _t5_stack(self, part: str, ids: Any, encoded: Any) -> Any:
        tf, length = self.tf, ids.shape[1]
        bias = self.values[f"{part}/block_000/layer_000/SelfAttention/relative_attention_bias"]
        positions = np.arange(length)
        buckets = self._buckets(positions[None, :] - positions[:, None], both=part == "encoder")
        shown = tf.gather(bias, buckets, axis=1)  # heads, queries, keys
        if part == "decoder":
            shown += np.triu(np.full((length, length), -1e9, np.float32), 1)
        x = tf.gather(self.values["shared/embedding"], ids)
        for block in range(self.sizes["layers"]):
            scope = f"{part}/block_{block:03}"
            x += self._t5_attention(f"{scope}/layer_000", "SelfAttention", x, None, shown)
            if encoded is not None:
                x += self._t5_attention(f"{scope}/layer_001", "EncDecAttention", x, encoded, 0.0)
            last = f"{scope}/layer_{2 if encoded is not None else 1:03}"
            inner, dense = self._rms_norm(last, x), f"{last}/DenseReluDense"
            if f"{dense}/wi/kernel" in self.values:
                inner = tf.nn.relu(inner @ self.values[f"{dense}/wi/kernel"])
            else:
                gate = self._tanh_gelu(inner @ self.values[f"{dense}/wi_0/kernel"])
                inner = gate * (inner @ self.values[f"{dense}/wi_1/kernel"])
            x += inner @ self.values[f"{dense}/wo/kernel"]
        return self._rms_norm(part, x)

    def _t5_attention(self, scope: str, kind: str, x: Any, encoded: Any, shown: Any) -> Any:
        x = self._rms_norm(scope, x)
        of = x if encoded is None else encoded
        query, key, value = (
            each @ self.values[f"{scope}/{kind}/{name}"] for each, name in ((x, "q"), (of, "k"), (of, "v"))
        )
        return self._attention(query, key, value, 1.0, shown) @ self.values[f"{scope}/{kind}/o"]

    def _buckets(self, distances: np.ndarray, *, both: bool) -> np.ndarray:
        """Half of the buckets have one distance each; the others have logarithmic sizes, up to a distance of 128."""
        count = self.sizes["buckets"]
        first = np.zeros_like(distances)
        if both:
            count //= 2
            first = np.where(distances > 0, count, 0)
            distances = np.abs(distances)
        else:
            distances = np.maximum(-distances, 0)
        exact = count // 2
        far = np.log(np.maximum(distances, 1) / exact) / np.log(128 / exact) * (count - exact)
        return first + np.where(distances < exact, distances, np.minimum(exact + far.astype(int), count - 1))

    def _embed(self, scope: str, ids: Any) -> Any:
        table = {
            name: self.values[f"{scope}/embeddings/{name}_embeddings"] for name in ("word", "position", "token_type")
        }
        x = self.tf.gather(table["word"], ids) + table["position"][: ids.shape[1]] + table["token_type"][0]
        return self._norm(f"{scope}/embeddings/LayerNorm", x)

    def _layer(self, scope: str, x: Any, gelu: Callable[[Any], Any]) -> Any:
        attended = self._dense(f"{scope}/attention/output/dense", self._attend(f"{scope}/attention/self", x, x))
        x = self._norm(f"{scope}/attention/output/LayerNorm", x + attended)
        inner = gelu(self._dense(f"{scope}/intermediate/dense", x))
        return self._norm(f"{scope}/output/LayerNorm", x + self._dense(f"{scope}/output/dense", inner))

    def _electra_encoder(self, scope: str, ids: Any) -> Any:
        x = self._dense(f"{scope}/embeddings_project", self._embed("electra", ids))
        for number in range(self.sizes["layers"]):
            x = self._layer(f"{scope}/encoder/layer_{number}", x, self._exact_gelu)
        return x

    def _bert_heads(self, x: Any, pooled: Any) -> dict[str, Any]:
        if "cls/predictions/output_bias" not in self.values:
            return {}
        transform = "cls/predictions/transform"
        words = self._norm(f"{transform}/LayerNorm", self._tanh_gelu(self._dense(f"{transform}/dense", x)))
        words = self.tf.matmul(words, self.values["bert/embeddings/word_embeddings"], transpose_b=True)
        order = self.tf.matmul(pooled, self.values["cls/seq_relationship/output_weights"], transpose_b=True)
        return {
            "words": words + self.values["cls/predictions/output_bias"],
            "order": order + self.values["cls/seq_relationship/output_bias"],
        }

    def _attend(self, scope: str, x: Any, of: Any) -> Any:
        query = self._dense(f"{scope}/query", x)
        key, value = self._dense(f"{scope}/key", of), self._dense(f"{scope}/value", of)
        return self._attention(query, key, value, (query.shape[-1] // self.sizes["heads"]) ** -0.5, 0.0)

    def _attention(self, query: Any, key: Any, value: Any, scale: float, shown: Any) -> Any:
        """Attention with several heads. `shown`: added to the scores, [heads, queries, keys] or fewer axes."""
        tf, heads = self.tf, self.sizes["heads"]

        def split(x: Any) -> Any:
            return tf.transpose(tf.reshape(x, [*x.shape[:2], heads, x.shape[2] // heads]), [0, 2, 1, 3])

        scores = tf.nn.softmax(tf.matmul(split(query), split(key), transpose_b=True) * scale + shown)
        joined = tf.transpose(scores @ split(value), [0, 2, 1, 3])
        return tf.reshape(joined, query.shape)

    def _dense(self, scope: str, x: Any) -> Any:
        return self.tf.tensordot(x, self.values[f"{scope}/kernel"], 1) + self.values[f"{scope}/bias"]

    def _conv(self, scope: str, x: Any) -> Any:
        return self.tf.nn.conv1d(x, self.values[f"{scope}/w"], 1, "VALID") + self.values[f"{scope}/b"]

    def _norm(self, scope: str, x: Any, epsilon: float = 1e-12, gamma: str = "gamma", beta: str = "beta") -> Any:
        mean, variance = self.tf.nn.moments(x, [-1], keepdims=True)
        scaled = (x - mean) / self.tf.sqrt(variance + epsilon)
        return scaled * self.values[f"{scope}/{gamma}"] + self.values[f"{scope}/{beta}"]

    def _gpt_norm(self, scope: str, x: Any) -> Any:
        return self._norm(scope, x, 1e-5, "g", "b")

    def _rms_norm(self, scope: str, x: Any) -> Any:
        names = (f"{scope}/{name}/scale" for name in ("layer_norm", "rms_norm", "final_layer_norm"))
        scale = next(self.values[name] for name in names if name in self.values)
        return x / self.tf.sqrt(self.tf.reduce_mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def _tanh_gelu(self, x: Any) -> Any:
        return 0.5 * x * (1 + self.tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def _exact_gelu(self, x: Any) -> Any:
        return 0.5 * x * (1 + self.tf.math.erf(x / np.sqrt(2)))


GARDEN_PARTS = {
    "self_attention/query": ("attention", "_attention_layer._query_dense"),
    "self_attention/key": ("attention", "_attention_layer._key_dense"),
    "self_attention/value": ("attention", "_attention_layer._value_dense"),
    "self_attention/attention_output": ("output", "_attention_layer._output_dense"),
    "self_attention_layer_norm": ("norm", "_attention_layer_norm"),
    "intermediate": ("inner", "_intermediate_dense"),
    "output": ("outer", "_output_dense"),
    "output_layer_norm": ("norm", "_output_layer_norm"),
}
"""Parts of a layer of BERT in TensorFlow's model garden: name -> kind, and path of the object."""


def garden_shapes(sizes: Sizes) -> Shapes:
    """BERT of TensorFlow's model garden, by full names of variables: attention has an axis for the heads."""
    hidden, heads, head, inner = (sizes[name] for name in ("hidden", "heads", "head", "inner"))
    kernels: dict[str, Shapes] = {
        "attention": {"kernel": (hidden, heads, head), "bias": (heads, head)},
        "output": {"kernel": (heads, head, hidden), "bias": (hidden,)},
        "inner": {"kernel": (hidden, inner), "bias": (inner,)},
        "outer": {"kernel": (inner, hidden), "bias": (hidden,)},
        "norm": {"gamma": (hidden,), "beta": (hidden,)},
    }
    shapes: Shapes = {
        "word_embeddings/embeddings": (sizes["vocabulary"], hidden),
        "position_embedding/embeddings": (sizes["positions"], hidden),
        "type_embeddings/embeddings": (2, hidden),
    }
    shapes |= norm_shapes("embeddings/layer_norm", hidden)
    for number in range(sizes["layers"]):
        for part, (kind, _) in GARDEN_PARTS.items():
            shapes |= {f"transformer/layer_{number}/{part}/{leaf}": each for leaf, each in kernels[kind].items()}
    shapes |= dense_shapes("pooler_transform", hidden, hidden)
    shapes |= dense_shapes("cls/predictions/transform/dense", hidden, hidden)
    shapes |= norm_shapes("cls/predictions/transform/LayerNorm", hidden)
    shapes |= {"cls/predictions/output_bias/bias": (sizes["vocabulary"],)}
    return shapes | dense_shapes("predictions/transform/logits", hidden, 2)


def garden_path(name: str, layers: int, *, as_layer: bool) -> str:
    """Return the path of the object with this full name. `as_layer`: in programs whose encoder is a layer."""
    module, _, leaf = name.rpartition("/")
    tables = ("word_embeddings", "position_embedding", "type_embeddings", "embeddings/layer_norm")
    attributes = ("_embedding_layer", "_position_embedding_layer", "_type_embedding_layer", "_embedding_norm_layer")
    heads = {
        "cls/predictions/transform/dense": "masked_lm.dense",
        "cls/predictions/transform/LayerNorm": "masked_lm.layer_norm",
        "cls/predictions/output_bias": "masked_lm",
        "predictions/transform/logits": "classification.logits",
    }
    if module in heads:
        return f"{heads[module]}.{leaf}"
    if as_layer and module == "word_embeddings":
        return "masked_lm.embedding_table"
    if module in tables:
        number = tables.index(module)
        return f"encoder.{attributes[number] if as_layer else f'layer_with_weights-{number}'}.{leaf}"
    if module == "pooler_transform":
        return f"encoder.{'_pooler_layer' if as_layer else f'layer_with_weights-{4 + layers}'}.{leaf}"
    _, layer, part = module.split("/", 2)
    number = int(layer.removeprefix("layer_"))
    place = f"_transformer_layers.{number}" if as_layer else f"layer_with_weights-{4 + number}"
    return f"encoder.{place}.{GARDEN_PARTS[part][1]}.{leaf}"


def write_objects(prefix: str, values: Mapping[str, np.ndarray], paths: Mapping[str, str]) -> list[str]:
    """Write an object-based checkpoint with an optimizer after a step; return its keys.

    Args:
        values: Full name of a variable -> value.
        paths: Full name -> path of the variable.
    """
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

    tree: dict[str, Any] = {}
    variables = [tf.Variable(value, name=name) for name, value in values.items()]
    for name, variable in zip(values, variables, strict=True):
        *parents, leaf = paths[name].split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = variable

    def tracked(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        found = tf.Module()
        for name, child in node.items():
            setattr(found, name, tracked(child))
        return found

    optimizer = tf.compat.v1.train.AdamOptimizer(0.0)  # adds slots, but changes nothing
    optimizer.apply_gradients([(tf.ones_like(variable), variable) for variable in variables])
    roots = {name: tracked(child) for name, child in tree.items()}
    tf.train.Checkpoint(**roots, optimizer=optimizer).write(prefix)
    return [name for name, _ in tf.train.list_variables(prefix)]


def keras_hub_bert(prefix: str, sizes: Sizes, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Write a checkpoint of a Keras model with the layers, attributes and names of KerasHub's BertBackbone.

    Returns:
        Its outputs, and all its variables by full name.
    """
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

    layers, hidden = tf.keras.layers, sizes["hidden"]
    generator = np.random.default_rng(5)

    class Position(layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
        def build(self, shape: Any) -> None:
            self.position_embeddings = self.add_weight(name="embeddings", shape=(sizes["positions"], shape[-1]))

        def call(self, inputs: Any) -> Any:
            return tf.broadcast_to(self.position_embeddings[: tf.shape(inputs)[1]], tf.shape(inputs))

    class Encoder(layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
        def build(self, shape: Any) -> None:
            attention = layers.MultiHeadAttention(sizes["heads"], sizes["head"], name="self_attention_layer")
            self._self_attention_layer = attention
            self._self_attention_layer.build(shape, shape)
            self._self_attention_layer_norm = self._norm("self_attention_layer_norm", shape)
            inner = layers.Dense(sizes["inner"], self._gelu, name="feedforward_intermediate_dense")
            self._feedforward_intermediate_dense = inner
            self._feedforward_intermediate_dense.build(shape)
            self._feedforward_output_dense = layers.Dense(hidden, name="feedforward_output_dense")
            self._feedforward_output_dense.build((*shape[:-1], sizes["inner"]))
            self._feedforward_layer_norm = self._norm("feedforward_layer_norm", shape)

        def call(self, inputs: Any) -> Any:
            x = self._self_attention_layer_norm(inputs + self._self_attention_layer(inputs, inputs))
            inner = self._feedforward_intermediate_dense(x)
            return self._feedforward_layer_norm(x + self._feedforward_output_dense(inner))

        def _norm(self, name: str, shape: Any) -> Any:
            norm = layers.LayerNormalization(epsilon=1e-12, name=name)
            norm.build(shape)
            return norm

        def _gelu(self, x: Any) -> Any:
            return tf.keras.activations.gelu(x, approximate=True)

    class Backbone(tf.keras.Model):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            self.token_embedding = layers.Embedding(sizes["vocabulary"], hidden, name="token_embedding")
            self.position_embedding = Position(name="position_embedding")
            self.segment_embedding = layers.Embedding(2, hidden, name="segment_embedding")
            self.embeddings_layer_norm = layers.LayerNormalization(epsilon=1e-12, name="embeddings_layer_norm")
            self.transformer_layers = [Encoder(name=f"transformer_layer_{n}") for n in range(sizes["layers"])]
            self.pooled_dense = layers.Dense(hidden, "tanh", name="pooled_dense")
            tokens = tf.keras.Input((None,), dtype="int32", name="token_ids")
            segments = tf.keras.Input((None,), dtype="int32", name="segment_ids")
            x = self.token_embedding(tokens)
            x = layers.Add()([x, self.position_embedding(x), self.segment_embedding(segments)])
            x = self.embeddings_layer_norm(x)
            for layer in self.transformer_layers:
                x = layer(x)
            super().__init__([tokens, segments], [x, self.pooled_dense(x[:, 0])])

    model = Backbone()
    for variable in model.variables:
        variable.assign(generator.normal(0, 0.4, variable.shape) + variable.path.endswith("gamma"))
    tf.train.Checkpoint(model=model).write(prefix)
    hidden_states, pooled = model([ids, np.zeros_like(ids)])
    stored = {variable.path: np.asarray(variable) for variable in model.variables}
    return {"hidden": np.asarray(hidden_states), "pooled": np.asarray(pooled), **stored}


def lenet(prefix: str, *, by_objects: bool) -> dict[str, np.ndarray]:
    """Write a checkpoint of a LeNet of Keras; return an input and the output."""
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

    layers, generator = tf.keras.layers, np.random.default_rng(4)
    tf.keras.backend.clear_session()
    parts = [
        layers.Conv2D(6, 5, padding="same", activation="tanh"), layers.AveragePooling2D(2),
        layers.Conv2D(16, 5, activation="tanh"), layers.AveragePooling2D(2), layers.Flatten(),
        layers.Dense(120, "tanh"), layers.Dense(84, "tanh"), layers.Dense(10),
    ]  # fmt: skip
    model = tf.keras.Sequential([tf.keras.Input((28, 28, 1)), *parts])
    for variable in model.variables:
        variable.assign(generator.normal(0, 0.1, variable.shape))
    if by_objects:
        tf.train.Checkpoint(model=model).write(prefix)
    else:
        named = {f"LeNet/{variable.path}": tf.Variable(variable.value) for variable in model.variables}
        tf.compat.v1.train.Saver(named).save(None, prefix, write_meta_graph=False, write_state=False)
    images = generator.normal(0, 1, (2, 28, 28, 1)).astype(np.float32)
    return {"in": images, "out": np.asarray(model(images))}
