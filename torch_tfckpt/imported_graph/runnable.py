"""Run a graph in torch, and make modules of it: the public methods of an imported graph.

imported.run("v4:0", {"v1:0": 12.0, "v2:0": 3.3})
net = imported.module(inputs=["x:0"], outputs=["logits:0"], constants={"keep_prob:0": 1.0})
net = imported.module(signature="serving_default")
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch.fx

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_run.requests import Requirements
from torch_tfckpt.imported_graph.running import GraphRunner


class RunsInTorch(ABC):
    """A graph that runs in torch."""

    @property
    @abstractmethod
    def _runner(self) -> GraphRunner: ...

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """Compute tensors of the graph, as a TensorFlow Session does.

        Args:
            fetches: The name of a tensor, such as "logits:0", or lists, tuples and dictionaries of names. A name
                without ":" is the node's first output; a node without outputs is run and gives None.
            feed_dict: Name of a tensor -> its value: a torch tensor, an array, or numbers. Any tensor of the graph can
                be fed; what only it depends on is not computed.

        Returns:
            Tensors, or numpy arrays of `bytes` for strings, in the structure of `fetches`.

        Raises:
            InvalidArgumentError: there is no such tensor; a placeholder is not fed, or with another shape or type; a
                node fails. The message names the node and its operation.
            UnimplementedError: an operation is not supported. The message names all of them.
            FailedPreconditionError: the graph reads variables that nobody restored.
            DataLossError: the graph is damaged.

        Assignments in the graph change `variables`. Random numbers are torch's. Gradients are not recorded: use
        `module` to train. A `.meta` file has the graph for training: if it has dropout or batch statistics, feed the
        placeholder that turns them off.
        Cost: the first call with the same fetches and names of feeds builds a module; later calls run it.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("model.ckpt")
            >>> imported = tfckpt.import_meta_graph("model.ckpt.meta")
            >>> report = imported.saver.restore("model.ckpt")
            >>> imported.run("w/Read/ReadVariableOp:0")
            tensor([1., 1.])
        """
        return self._runner.run(fetches, feed_dict)

    def module(
        self,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        constants: Mapping[str, Any] | None = None,
        when_training: Mapping[str, Any] | None = None,
        when_evaluating: Mapping[str, Any] | None = None,
        *,
        signature: str | None = None,
        inference: bool = False,
        allow_assign: bool = False,
    ) -> torch.fx.GraphModule:
        """Return a torch module that computes tensors of the graph.

        Args:
            inputs: Names of the tensors that become the positional arguments.
            outputs: Names of the tensors that it returns, as a tuple.
            constants: Name of a tensor -> a fixed value, such as `{"keep_prob:0": 1.0}`.
            when_training, when_evaluating: Constants that apply after `module.train()` and after `module.eval()`.
            signature: Instead of inputs and outputs: the name of a signature. The module takes its inputs by name and
                returns a dictionary.
            inference: Turn off dropout, and let normalisations use moving averages instead of statistics of the
                batch. `module.meta["inference"]` lists what was changed. What looks like training but is not
                recognised is refused.
            allow_assign: Whether the module may change variables each time it is called.

        Trainable variables are Parameters that share memory with `variables`, so that `saver` saves what was trained;
        the others are buffers. Names in the `state_dict` are the graph's, with dots: "dense.kernel".

        Raises:
            InvalidArgumentError: there is no such tensor or signature, or an input is missing.
            UnimplementedError: an operation is not supported, the outputs change variables, or `inference` does not
                know how to turn something off.
            FailedPreconditionError: nobody restored the variables.
            DataLossError: the graph is damaged.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("model.ckpt")
            >>> imported = tfckpt.import_meta_graph("model.ckpt.meta")
            >>> report = imported.saver.restore("model.ckpt")
            >>> module = imported.module(inputs=[], outputs=["w/Read/ReadVariableOp:0"])
            >>> list(module.state_dict())
            ['w']
        """
        if signature is not None:
            if inputs is not None or outputs is not None or when_training or when_evaluating:
                raise InvalidArgumentError("give either signature, or inputs and outputs")
            return self._runner.signature_module(signature, constants, inference, allow_assign)
        if isinstance(inputs, str) or isinstance(outputs, str) or inputs is None or outputs is None:
            raise InvalidArgumentError("module needs the lists inputs and outputs, or a signature")
        return self._runner.module(inputs, outputs, constants, when_training, when_evaluating, inference, allow_assign)

    def requirements(self, outputs: str | Sequence[str] | None = None, inputs: Sequence[str] = ()) -> Requirements:
        """Return what must be fed to compute outputs, the operations they need, and those that are not supported.

        Args:
            outputs: Names of tensors or nodes; default: the outputs of all signatures.
            inputs: Names of tensors that will be fed.

        Raises:
            InvalidArgumentError: there is no such node, or no signature.
            DataLossError: the graph is damaged.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> path = tfckpt.Saver({"w": torch.ones(2)}).save("model.ckpt")
            >>> imported = tfckpt.import_meta_graph("model.ckpt.meta")
            >>> imported.requirements("w/Read/ReadVariableOp:0").ops["ReadVariableOp"]
            1
        """
        return self._runner.requirements(outputs, inputs)
