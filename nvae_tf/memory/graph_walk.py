"""How much memory a traced function needs when it runs: its graph is walked as TensorFlow would, nothing is run."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# Operations that give an input on as it is: output i is input i.
_VIEWS = frozenset(
    "CheckNumerics EnsureShape ExpandDims Identity IdentityN PlaceholderWithDefault PreventGradient Reshape Snapshot "
    "Squeeze StopGradient".split()
)
# These do where there is nothing to put together or to repeat.
_VIEWS_OF_THE_SAME_SIZE = frozenset(["BroadcastTo", "Pack", "Tile"])
# What is there before the function runs, and what belongs to its caller or to a variable.
_KEPT = frozenset(["Const", "FakeParam", "Placeholder", "ReadVariableOp", "VarHandleOp"])
# Element-wise kernels write into an input of the output's size that nothing else needs.
_IN_PLACE = frozenset(
    "Abs Add AddN AddV2 BiasAdd ClipByValue Cos Div DivNoNan Elu EluGrad Exp Expm1 Floor FusedBatchNormGradV3 "
    "FusedBatchNormV3 Inv InvGrad LeakyRelu LeakyReluGrad Log Log1p LogSoftmax Maximum Minimum Mul MulNoNan Neg "
    "OnesLike Pow RealDiv Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad Round Rsqrt RsqrtGrad SelectV2 Selu "
    "SeluGrad Sigmoid SigmoidGrad Sign Sin Softmax Softplus SoftplusGrad Sqrt SqrtGrad Square SquaredDifference Sub "
    "Tanh TanhGrad Xlogy ZerosLike".split()
)
_CONDITIONS = frozenset(["If", "StatelessIf"])
_CALLS = {
    "PartitionedCall": ["f"],
    "StatefulPartitionedCall": ["f"],
    "If": ["then_branch", "else_branch"],
    "StatelessIf": ["then_branch", "else_branch"],
    "While": ["body"],
    "StatelessWhile": ["body"],
}
# Their outputs of unknown shape are some bytes.
_SMALL_UNKNOWN = frozenset(["BroadcastGradientArgs", "FusedBatchNormV3", "ZerosLike"])
# What Unpack cuts off shares the tensor's memory where all parts begin at such multiples.
_ALIGNMENT = 64


class Timeline(NamedTuple):
    """What a function takes and gives back while it runs, in the order of time.

    Attributes:
      changes: bytes, positive where a buffer is taken and negative where it is freed, `[events]`.
      buffers: which buffer that is, `[events]`; each is taken once and freed once.
      nodes: how many nodes the graph has, with each function that it calls.
      unknown: names of the operations whose outputs have no size that is known before they run; counted as nothing.
    """

    changes: np.ndarray
    buffers: np.ndarray
    nodes: int
    unknown: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """The largest sum of all that is taken and not yet freed."""
        return int(np.cumsum(self.changes).max(initial=0))


def memory_timeline(function: Any) -> Timeline:
    """The memory that a concrete function takes and frees in one run on a CPU's executor with one thread.

    Operations run in the order in which they become ready, by data and control dependencies. A buffer is freed after
    the last operation that reads it. Views share their input's buffer, element-wise operations write into an input that
    nothing else reads. Functions are walked too, of a condition the longer branch, of a loop one turn. Arguments,
    constants and variables are there before and are not counted; nor is what a kernel takes for itself while it runs.

    Args:
      function: a `tf.types.experimental.ConcreteFunction`, traced with known shapes.
    """
    graph = function.graph
    walk = _Walk(graph)
    arguments = [_Buffer(_size_in_bytes(tensor) or 0) for tensor in graph.inputs]
    walk.release(walk.run(graph, len(graph.outputs), arguments, is_held=True))
    graphs = {id(called.graph): called.graph for called in walk.functions.values()} | {id(graph): graph}
    changes, buffers = np.array(walk.events, np.int64).reshape(-1, 2).T
    return Timeline(changes, buffers, sum(len(each.get_operations()) for each in graphs.values()), tuple(walk.unknown))


class _Buffer:
    """Memory of one tensor and its views; `uses` counts who still needs it."""

    def __init__(self, size: int = 0, number: int | None = None):
        self.size, self.number, self.uses = size, number, 0

    @property
    def is_counted(self) -> bool:
        """Whether the function takes and frees it, and may write into it."""
        return self.number is not None


class _Node(NamedTuple):
    """An operation; `inputs` are pairs of a node's place in the list and an output of it, `uses` counts the readers of
    each output.
    """

    operation: tf.Operation
    inputs: list[tuple[int, int]]
    uses: list[int]
    successors: list[int]
    num_awaited: int


class _Walk:
    """The walk of a graph and of the functions that it calls; gathers `events`, pairs of bytes and buffer number."""

    def __init__(self, graph: tf.Graph):
        self.functions = graph._functions  # There is no public way to the graphs of called functions.
        self.events: list[tuple[int, int]] = []
        self.unknown: list[str] = []
        self._nodes: dict[tuple[int, int], list[_Node]] = {}
        self._num_buffers = 0

    def run(self, graph: tf.Graph, num_outputs: int, arguments: list[_Buffer], is_held: bool) -> list[_Buffer]:
        """Walks one graph and returns the buffers of its outputs, each with one use, which the caller is to release.

        Args:
          graph: that of a function.
          num_outputs: how many of its outputs are asked for; a gradient adds others behind them.
          arguments: the buffers of its inputs, each with one use, which is released.
          is_held: whether only at the end, as a call does that is not inlined.
        """
        key = id(graph), num_outputs
        nodes = self._nodes[key] = self._nodes.get(key) or _nodes_of(graph, num_outputs)
        made = _place_arguments(graph, nodes, arguments)
        given = set(made)
        if not is_held:
            self.release(arguments)
        awaited = [node.num_awaited for node in nodes]
        ready = collections.deque(place for place, count in enumerate(awaited) if count == 0)
        while ready:
            place = ready.popleft()
            node = nodes[place]
            if place not in given:
                made[place] = self._execute(node, [made[source][output] for source, output in node.inputs])
            for successor in node.successors:
                awaited[successor] -= 1
                if awaited[successor] == 0:
                    ready.append(successor)
        places = {node.operation.name: place for place, node in enumerate(nodes)}
        outputs = [made[places[tensor.op.name]][tensor.value_index] for tensor in graph.outputs[:num_outputs]]
        if is_held:
            self.release(arguments)
        return outputs

    def release(self, buffers: Sequence[_Buffer]) -> None:
        """Takes one use from each buffer and frees those that had no other."""
        for buffer in buffers:
            buffer.uses -= 1
            if buffer.uses == 0 and buffer.is_counted:
                self.events.append((-buffer.size, buffer.number))

    def _execute(self, node: _Node, inputs: list[_Buffer]) -> list[_Buffer]:
        if node.operation.type in _CALLS:
            outputs = self._call(node.operation, inputs)
        else:
            outputs = self._outputs(node.operation, inputs)
            for buffer in outputs:
                buffer.uses += 1
            self.release(inputs)
        for buffer, uses in zip(outputs, node.uses, strict=True):
            buffer.uses += uses
        self.release(outputs)
        return outputs

    def _call(self, operation: tf.Operation, inputs: list[_Buffer]) -> list[_Buffer]:
        names = [operation.get_attr(attribute).name for attribute in _CALLS[operation.type]]
        function = max((self.functions[name] for name in names), key=lambda called: len(called.graph.get_operations()))
        num_decisions = 1 if operation.type in _CONDITIONS else 0
        self.release(inputs[:num_decisions])
        is_held = function.cached_definition.attr["_noinline"].b
        return self.run(function.graph, len(operation.outputs), inputs[num_decisions:], is_held)

    def _outputs(self, operation: tf.Operation, inputs: list[_Buffer]) -> list[_Buffer]:
        if operation.type in _KEPT:
            return [_Buffer(_size_in_bytes(tensor) or 0) for tensor in operation.outputs]
        if operation.type in _VIEWS:
            return inputs[: len(operation.outputs)]
        sizes = [self._size(tensor) for tensor in operation.outputs]
        if operation.type == "Unpack" and operation.get_attr("axis") == 0 and sizes[0] % _ALIGNMENT == 0:
            return inputs * len(sizes)
        if operation.type in _VIEWS_OF_THE_SAME_SIZE and sizes[0] == inputs[0].size:
            return [inputs[0]]
        outputs = []
        for place, size in enumerate(sizes):
            free = [buffer for buffer in inputs if buffer.is_counted and buffer.uses == 1 and buffer.size == size]
            in_place = place == 0 and operation.type in _IN_PLACE and free
            outputs.append(free[0] if in_place else self._take(size))
        return outputs

    def _take(self, size: int) -> _Buffer:
        buffer = _Buffer(size, self._num_buffers)
        self._num_buffers += 1
        self.events.append((size, buffer.number))
        return buffer

    def _size(self, tensor: tf.Tensor) -> int:
        size = _size_in_bytes(tensor)
        if size is None and tensor.op.type not in _SMALL_UNKNOWN:
            self.unknown.append(tensor.op.name)
        return size or 0


def _size_in_bytes(tensor: tf.Tensor) -> int | None:
    if tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    return tensor.shape.num_elements() * tensor.dtype.size if tensor.shape.is_fully_defined() else None


def _place_arguments(graph: tf.Graph, nodes: list[_Node], arguments: list[_Buffer]) -> dict[int, list[_Buffer]]:
    """The buffers of a graph's placeholders, by their place among its nodes, with the uses that they have there."""
    numbers = {tensor.op.name: number for number, tensor in enumerate(graph.inputs)}
    made = {}
    for place, node in enumerate(nodes):
        if node.operation.name in numbers:
            made[place] = [arguments[numbers[node.operation.name]]]
            made[place][0].uses += node.uses[0]
    return made


def _nodes_of(graph: tf.Graph, num_outputs: int) -> list[_Node]:
    """The operations that the outputs and the side effects of a function need, in the order of the graph."""
    asked = graph.outputs[:num_outputs]
    needed, left = set(), [tensor.op for tensor in asked] + list(graph.control_outputs)
    while left:
        operation = left.pop()
        if operation not in needed:
            needed.add(operation)
            left += _awaited(operation)
    operations = [operation for operation in graph.get_operations() if operation in needed]
    places = {operation.name: place for place, operation in enumerate(operations)}
    nodes = []
    for operation in operations:
        inputs = [(places[tensor.op.name], tensor.value_index) for tensor in operation.inputs]
        nodes.append(_Node(operation, inputs, [0] * len(operation.outputs), [], len(_awaited(operation))))
    for place, node in enumerate(nodes):
        for awaited in _awaited(node.operation):
            nodes[places[awaited.name]].successors.append(place)
        for source, output in node.inputs:
            nodes[source].uses[output] += 1
    for tensor in asked:
        nodes[places[tensor.op.name]].uses[tensor.value_index] += 1
    return nodes


def _awaited(operation: tf.Operation) -> list[tf.Operation]:
    """What must have run before an operation, each once."""
    return list({tensor.op: None for tensor in operation.inputs} | dict.fromkeys(operation.control_inputs))
