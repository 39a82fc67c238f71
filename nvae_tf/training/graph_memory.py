"""The peak memory of a traced function, from its graph alone: the graph is walked as TensorFlow would run it.

`memory_timeline` lists what is allocated and freed; `reserved_bytes` places that as TensorFlow's allocator does.
"""

import bisect
import collections
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Operations whose output i is input i, unchanged.
_VIEWS = frozenset(
    "CheckNumerics EnsureShape ExpandDims Identity IdentityN PlaceholderWithDefault PreventGradient Reshape Snapshot "
    "Squeeze StopGradient".split()
)
# Views where there is nothing to concatenate or to repeat.
_VIEWS_OF_THE_SAME_SIZE = frozenset(["BroadcastTo", "Pack", "Tile"])
# What exists before the function runs, and what belongs to its caller or to a variable.
_KEPT = frozenset(["Const", "FakeParam", "Placeholder", "ReadVariableOp", "VarHandleOp"])
# Element-wise kernels write into an input of the output's size that nothing else needs.
_IN_PLACE = frozenset(
    "Abs Add AddN AddV2 BiasAdd ClipByValue Cos Div DivNoNan Elu EluGrad Exp Expm1 Floor FusedBatchNormGradV3 "
    "FusedBatchNormV3 Inv InvGrad LeakyRelu LeakyReluGrad Log Log1p LogSoftmax Maximum Minimum Mul MulNoNan Neg "
    "OnesLike Pow RealDiv Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad Round Rsqrt RsqrtGrad SelectV2 Selu "
    "SeluGrad Sigmoid SigmoidGrad Sign Sin Softmax Softplus SoftplusGrad Sqrt SqrtGrad Square SquaredDifference Sub "
    "Tanh TanhGrad Xlogy ZerosLike".split()
)
# Operations that call functions, and the attributes that name these.
_CALLS = dict.fromkeys(["PartitionedCall", "StatefulPartitionedCall"], ["f"])
_CALLS |= dict.fromkeys(["If", "StatelessIf"], ["then_branch", "else_branch"])
_CALLS |= dict.fromkeys(["While", "StatelessWhile"], ["body"])
# Their outputs of unknown shape are some bytes.
_SMALL_UNKNOWN = frozenset(["BroadcastGradientArgs", "FusedBatchNormV3", "ZerosLike"])
# Unpack makes views where all of them begin at multiples of this.
_ALIGNMENT = 64
# The allocator rounds sizes up, and splits a chunk where so much is left over or it is twice as large as asked for.
_ROUNDING = 256
_LARGEST_REST = 2**27
_END_OF_MEMORY = 2**60


class Timeline(NamedTuple):
    """What a function allocates and frees while it runs, in the order of time.

    Attributes:
      changes: bytes, positive where a buffer is allocated and negative where it is freed, `[events]`.
      buffers: which buffer that is, `[events]`; each is allocated once and freed once.
      nodes: how many nodes the graph has, with each function that it calls.
      unknown: names of the operations whose outputs have no size that is known before they run; counted as nothing.
    """

    changes: np.ndarray
    buffers: np.ndarray
    nodes: int
    unknown: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """The largest sum of all that is allocated and not yet freed."""
        return int(np.cumsum(self.changes).max(initial=0))


def memory_timeline(function: tf.types.experimental.ConcreteFunction) -> Timeline:
    """The memory that a concrete function allocates and frees in one run on a CPU's executor with one thread.

    Operations run in the order in which they become ready, by data and control dependencies. A buffer is freed after
    the last operation that reads it. Views share their input's buffer, element-wise operations write into an input that
    nothing else reads. Called functions are walked too, of a condition the longer branch, of a loop one turn. Not
    counted: arguments, constants, variables, and a kernel's own scratch memory. Shapes must have been known in tracing.
    """
    graph = function.graph
    walk = _Walk(graph)
    arguments = [_Buffer(_size_in_bytes(tensor) or 0) for tensor in graph.inputs]
    walk.release(walk.run(graph, len(graph.outputs), arguments, is_held=True))
    graphs = {id(called.graph): called.graph for called in walk.functions.values()} | {id(graph): graph}
    changes, buffers = np.array(walk.events, np.int64).reshape(-1, 2).T
    return Timeline(changes, buffers, sum(len(each.get_operations()) for each in graphs.values()), tuple(walk.unknown))


class _Buffer:
    """Memory of one tensor and its views; `uses` counts who still needs it. Only numbered ones are counted."""

    def __init__(self, size: int = 0, number: int | None = None):
        self.size, self.number, self.uses = size, number, 0


class _Node(NamedTuple):
    """An operation, and the number of the function's argument that it stands for."""

    operation: tf.Operation
    inputs: list[tuple[int, int]]  # a node's place in the list, and which of its outputs
    uses: list[int]  # the readers of each output
    successors: list[int]
    num_awaited: int
    argument: int | None


class _Walk:
    """The walk of a graph and of the functions that it calls; gathers `events`, pairs of bytes and buffer number."""

    def __init__(self, graph: tf.Graph):
        self.functions = graph._functions  # There is no public way to the graphs of called functions.
        self.events: list[tuple[int, int]] = []
        self.unknown: list[str] = []
        self._nodes: dict[tuple[int, int], tuple[list[_Node], list[tuple[int, int]]]] = {}
        self._num_buffers = 0

    def run(self, graph: tf.Graph, num_outputs: int, arguments: list[_Buffer], is_held: bool) -> list[_Buffer]:
        """Walks one graph and returns the buffers of its outputs, each with one use, which the caller is to release.

        Asks for the first `num_outputs`; a gradient adds others behind them. `arguments` are the buffers of the inputs,
        each with one use, which is released: only at the end if `is_held`, as a call does that is not inlined.
        """
        key = id(graph), num_outputs
        if key not in self._nodes:
            self._nodes[key] = _nodes_of(graph, num_outputs)
        nodes, outputs = self._nodes[key]
        made: dict[int, list[_Buffer]] = {}
        for place, node in enumerate(nodes):
            if node.argument is not None:
                made[place] = [arguments[node.argument]]
                made[place][0].uses += node.uses[0]
        if not is_held:
            self.release(arguments)
        awaited = [node.num_awaited for node in nodes]
        ready = collections.deque(place for place, count in enumerate(awaited) if count == 0)
        while ready:
            place = ready.popleft()
            node = nodes[place]
            if node.argument is None:
                made[place] = self._execute(node, [made[source][output] for source, output in node.inputs])
            for successor in node.successors:
                awaited[successor] -= 1
                if awaited[successor] == 0:
                    ready.append(successor)
        if is_held:
            self.release(arguments)
        return [made[place][output] for place, output in outputs]

    def release(self, buffers: list[_Buffer]) -> None:
        """Takes one use from each buffer and frees those that had no other."""
        for buffer in buffers:
            buffer.uses -= 1
            if buffer.uses == 0 and buffer.number is not None:
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
        num_decisions = 1 if len(names) == 2 else 0
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
            can_reuse = place == 0 and operation.type in _IN_PLACE
            free = [each for each in inputs if each.number is not None and each.uses == 1 and each.size == size]
            if can_reuse and free:
                outputs.append(free[0])
            else:
                outputs.append(_Buffer(size, self._num_buffers))
                self.events.append((size, self._num_buffers))
                self._num_buffers += 1
        return outputs

    def _size(self, tensor: tf.Tensor) -> int:
        size = _size_in_bytes(tensor)
        if size is None and tensor.op.type not in _SMALL_UNKNOWN:
            self.unknown.append(tensor.op.name)
        return size or 0


def _size_in_bytes(tensor: tf.Tensor) -> int | None:
    if tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    return tensor.shape.num_elements() * tensor.dtype.size if tensor.shape.is_fully_defined() else None


def _nodes_of(graph: tf.Graph, num_outputs: int) -> tuple[list[_Node], list[tuple[int, int]]]:
    """The operations that outputs and side effects of a function need, in the graph's order; where its outputs are."""
    asked = graph.outputs[:num_outputs]
    needed, left = set(), [tensor.op for tensor in asked] + list(graph.control_outputs)
    while left:
        operation = left.pop()
        if operation not in needed:
            needed.add(operation)
            left += _awaited(operation)
    operations = [operation for operation in graph.get_operations() if operation in needed]
    places = {operation.name: place for place, operation in enumerate(operations)}
    arguments = {tensor.op.name: number for number, tensor in enumerate(graph.inputs)}
    outputs = [(places[tensor.op.name], tensor.value_index) for tensor in asked]
    nodes = []
    for operation in operations:
        inputs = [(places[tensor.op.name], tensor.value_index) for tensor in operation.inputs]
        uses, argument = [0] * len(operation.outputs), arguments.get(operation.name)
        nodes.append(_Node(operation, inputs, uses, [], len(_awaited(operation)), argument))
    for place, node in enumerate(nodes):
        for awaited in _awaited(node.operation):
            nodes[places[awaited.name]].successors.append(place)
    for source, output in [*(each for node in nodes for each in node.inputs), *outputs]:
        nodes[source].uses[output] += 1
    return nodes, outputs


def _awaited(operation: tf.Operation) -> list[tf.Operation]:
    """What must have run before an operation, each once."""
    return list({tensor.op: None for tensor in operation.inputs} | dict.fromkeys(operation.control_inputs))


def reserved_bytes(timeline: Timeline) -> int:
    """The end of the highest buffer when TensorFlow's allocator has placed all of them.

    GPUs have it, and CPUs with oneDNN: best fit with coalescing, which returns nothing to the system. At least the
    timeline's peak; more where a new buffer fits into none of the gaps.
    """
    allocator = _BestFit()
    starts: dict[int, int] = {}
    for change, buffer in zip(timeline.changes.tolist(), timeline.buffers.tolist(), strict=True):
        if change > 0:
            starts[buffer] = allocator.allocate(change)
        elif change < 0:
            allocator.free(starts.pop(buffer))
    return allocator.end


class _BestFit:
    """The chunks of one region of memory, which begins at 0 and has no end."""

    def __init__(self):
        self.end = 0
        self._allocated: dict[int, int] = {}  # start -> size
        self._free: list[tuple[int, int]] = []  # size and start, the smallest first
        self._free_at: dict[int, int] = {}  # start -> size
        self._free_before: dict[int, int] = {}  # end -> start
        self._add(0, _END_OF_MEMORY)

    def allocate(self, size: int) -> int:
        """Allocates the smallest free chunk that has room for `size` bytes; returns its start."""
        size = -(-size // _ROUNDING) * _ROUNDING
        chunk, start = self._free[bisect.bisect_left(self._free, (size, -1))]
        self._remove(start)
        if chunk >= 2 * size or chunk - size >= _LARGEST_REST:
            self._add(start + size, chunk - size)
            chunk = size
        self._allocated[start] = chunk
        self.end = max(self.end, start + chunk)
        return start

    def free(self, start: int) -> None:
        """Frees the chunk that begins there, and joins it with its free neighbors."""
        size = self._allocated.pop(start)
        if start + size in self._free_at:
            size += self._remove(start + size)
        if start in self._free_before:
            start = self._free_before[start]
            size += self._remove(start)
        self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        bisect.insort(self._free, (size, start))
        self._free_at[start] = size
        self._free_before[start + size] = start

    def _remove(self, start: int) -> int:
        size = self._free_at.pop(start)
        del self._free[bisect.bisect_left(self._free, (size, start))]
        del self._free_before[start + size]
        return size
