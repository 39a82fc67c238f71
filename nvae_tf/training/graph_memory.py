"""The peak memory of a traced function, from its graph alone: the graph is walked as TensorFlow would run it.

`memory_timeline` lists what is allocated and freed; `reserved_bytes` places that as TensorFlow's allocator does.
"""

import bisect
import collections
import functools
import itertools
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
    """What a function allocates and frees while it runs, in the order of time."""

    changes: np.ndarray  # bytes, positive where a buffer is allocated and negative where it is freed, `[events]`
    buffers: np.ndarray  # which buffer that is, `[events]`; each is allocated once and freed once
    unknown: tuple[str, ...]  # operations with outputs of unknown size, which are counted as nothing

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
    changes, buffers = np.array(walk.events, np.int64).reshape(-1, 2).T
    return Timeline(changes, buffers, tuple(walk.unknown))


def number_of_nodes(graph: tf.Graph) -> int:
    """The operations of a graph and of each function that it calls."""
    graphs = {id(called.graph): called.graph for called in graph._functions.values()} | {id(graph): graph}
    return sum(len(each.get_operations()) for each in graphs.values())


class _Buffer:
    """Memory of one tensor and its views; `uses` counts who still needs it. Only numbered ones are counted."""

    def __init__(self, size: int = 0, number: int | None = None):
        self.size, self.number, self.uses = size, number, 0


class _Walk:
    """The walk of a graph and of the functions that it calls; gathers `events`, pairs of bytes and buffer number."""

    def __init__(self, graph: tf.Graph):
        self.functions = graph._functions  # There is no public way to the graphs of called functions.
        self.events: list[tuple[int, int]] = []
        self.unknown: list[str] = []
        self._in_order = functools.cache(_in_order)
        self._num_buffers = 0

    def run(self, graph: tf.Graph, num_outputs: int, arguments: list[_Buffer], is_held: bool) -> list[_Buffer]:
        """Walks one graph and returns the buffers of its outputs, each with one use, which the caller is to release.

        Asks for the first `num_outputs`; a gradient adds others behind them. `arguments` are the buffers of the inputs,
        each with one use, which is released: only at the end if `is_held`, as a call does that is not inlined.
        """
        operations, outputs, uses = self._in_order(graph, num_outputs)
        made: dict[str, list[_Buffer]] = {}
        for tensor, buffer in zip(graph.inputs, arguments, strict=True):
            made[tensor.op.name] = [buffer]
            buffer.uses += uses[tensor.op.name, 0]
        if not is_held:
            self.release(arguments)
        for name, operation, inputs in operations:
            if name not in made:
                made[name] = self._execute(operation, [made[source][index] for source, index in inputs])
                for index, buffer in enumerate(made[name]):
                    buffer.uses += uses[name, index]
                self.release(made[name])
        if is_held:
            self.release(arguments)
        return [made[source][index] for source, index in outputs]

    def release(self, buffers: list[_Buffer]) -> None:
        """Takes one use from each buffer and frees those that had no other."""
        for buffer in buffers:
            buffer.uses -= 1
            if buffer.uses == 0 and buffer.number is not None:
                self.events.append((-buffer.size, buffer.number))

    def _execute(self, operation: tf.Operation, inputs: list[_Buffer]) -> list[_Buffer]:
        """The buffers of an operation's outputs, each with one use, which the caller is to release."""
        if operation.type in _CALLS:
            called = [self.functions[operation.get_attr(name).name] for name in _CALLS[operation.type]]
            function = max(called, key=lambda each: len(each.graph.get_operations()))
            # A condition's first input decides.
            num_decisions = len(called) - 1
            self.release(inputs[:num_decisions])
            is_held = function.cached_definition.attr["_noinline"].b
            return self.run(function.graph, len(operation.outputs), inputs[num_decisions:], is_held)
        outputs = self._outputs(operation, inputs)
        for buffer in outputs:
            buffer.uses += 1
        self.release(inputs)
        return outputs

    def _outputs(self, operation: tf.Operation, inputs: list[_Buffer]) -> list[_Buffer]:
        if operation.type in _KEPT:
            return [_Buffer(_size_in_bytes(tensor) or 0) for tensor in operation.outputs]
        if operation.type in _VIEWS:
            return inputs[: len(operation.outputs)]
        sizes = [_size_in_bytes(tensor) for tensor in operation.outputs]
        if operation.type not in _SMALL_UNKNOWN:
            self.unknown += [operation.name] * sizes.count(None)
        sizes = [size or 0 for size in sizes]
        if operation.type == "Unpack" and operation.get_attr("axis") == 0 and sizes[0] % _ALIGNMENT == 0:
            return inputs * len(sizes)
        if operation.type in _VIEWS_OF_THE_SAME_SIZE and sizes[0] == inputs[0].size:
            return [inputs[0]]
        outputs = []
        if operation.type in _IN_PLACE:
            free = (each for each in inputs if each.number is not None and each.uses == 1 and each.size == sizes[0])
            outputs = list(itertools.islice(free, 1))
        for size in sizes[len(outputs) :]:
            outputs.append(_Buffer(size, self._num_buffers))
            self.events.append((size, self._num_buffers))
            self._num_buffers += 1
        return outputs


def _size_in_bytes(tensor: tf.Tensor) -> int | None:
    if tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    return tensor.shape.num_elements() * tensor.dtype.size if tensor.shape.is_fully_defined() else None


def _in_order(graph: tf.Graph, num_outputs: int) -> tuple[list, list[tuple[str, int]], collections.Counter]:
    """The operations that outputs and side effects of a function need, in the order in which they become ready.

    Each has its name and its inputs with it: the names of operations, and which of their outputs. Then come the first
    `num_outputs` of the function, and how often every output of an operation is read.
    """
    asked = graph.outputs[:num_outputs]
    awaited, left = {}, [tensor.op for tensor in asked] + list(graph.control_outputs)
    while left:
        operation = left.pop()
        if operation not in awaited:
            awaited[operation] = {tensor.op for tensor in operation.inputs} | {*operation.control_inputs}
            left += awaited[operation]
    operations, readers = [each for each in graph.get_operations() if each in awaited], collections.defaultdict(list)
    for operation in operations:
        for before in awaited[operation]:
            readers[before].append(operation)
    in_order = [operation for operation in operations if not awaited[operation]]
    for operation in in_order:  # which grows
        for reader in readers[operation]:
            awaited[reader].remove(operation)
            if not awaited[reader]:
                in_order.append(reader)
    inputs = [[(tensor.op.name, tensor.value_index) for tensor in operation.inputs] for operation in in_order]
    outputs = [(tensor.op.name, tensor.value_index) for tensor in asked]
    uses = collections.Counter(itertools.chain(outputs, *inputs))
    return [(each.name, each, found) for each, found in zip(in_order, inputs, strict=True)], outputs, uses


def reserved_bytes(timeline: Timeline) -> int:
    """The end of the highest buffer when TensorFlow's allocator has placed all of them.

    GPUs have it, and CPUs with oneDNN: best fit with coalescing, which returns nothing to the system. At least the
    timeline's peak; more where a new buffer fits into none of the gaps.
    """
    end, allocated = 0, {}  # buffer -> start and size
    # The free chunks: size and start, the smallest first; start -> size; end -> start.
    free, size_at, start_before = [], {}, {}

    def add(start: int, size: int) -> None:
        bisect.insort(free, (size, start))
        size_at[start], start_before[start + size] = size, start

    def remove(start: int) -> int:
        size = size_at.pop(start)
        del free[bisect.bisect_left(free, (size, start))], start_before[start + size]
        return size

    add(0, _END_OF_MEMORY)
    for change, buffer in zip(timeline.changes.tolist(), timeline.buffers.tolist(), strict=True):
        if change > 0:
            wanted = -(-change // _ROUNDING) * _ROUNDING
            size, start = free[bisect.bisect_left(free, (wanted, -1))]
            remove(start)
            if size >= 2 * wanted or size - wanted >= _LARGEST_REST:
                add(start + wanted, size - wanted)
                size = wanted
            allocated[buffer] = start, size
            end = max(end, start + size)
        elif change < 0:
            start, size = allocated.pop(buffer)
            if start + size in size_at:
                size += remove(start + size)
            if start in start_before:
                start = start_before[start]
                size += remove(start)
            add(start, size)
    return end
