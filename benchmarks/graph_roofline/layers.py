"""A graph as layers, and the least work of each, from which the *fused floor* follows.

A layer is one convolution, matrix product or attention with the elementwise nodes around it; any other node is a layer
of its own. Inside a layer nothing is written to memory and read again: its bytes are those of the tensors that enter or
leave it, each once. So biases, activations and residuals that touch a convolution cost no traffic but that of operands
from elsewhere. A norm is not merged: all of its input must have been seen before its first output is known. No layer
finds in a cache what another left there.

An elementwise node joins the matrix layer that computes one of its inputs (an epilogue) unless its other inputs depend
on that layer through others; else the matrix layer that alone reads it (a prologue).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from roofline import Work

from graph_roofline.node_work import ELEMENTWISE, MATRIX_OPS, READ_WHAT_THEY_WRITE, VIEWS, total, work_of
from graph_roofline.sized_graph import SizedGraph, SizedNode, SizedTensor


@dataclass(frozen=True)
class Layer:
    """Nodes that one kernel could run, named after the one that matters most.

    Args:
        shape: of what that node writes.
        kernel: a convolution's taps, such as (3, 3).
        tensors: the names of all that its nodes write, views of it included.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    ops: tuple[str, ...]
    tensors: frozenset[str]
    work: Work


def layers_of(graph: SizedGraph) -> tuple[Layer, ...]:
    """The layers, in the order of the nodes they are named after."""
    flow = _Flow.of(graph)
    members: dict[int, list[int]] = defaultdict(list)
    for index, anchor in enumerate(_anchors(flow)):
        members[anchor].append(index)
    return tuple(_layer(flow, anchor, indices) for anchor, indices in sorted(members.items()))


@dataclass(frozen=True)
class _Flow:
    """The nodes that do something, and what flows between them; views are other names of what they look at."""

    nodes: tuple[SizedNode, ...]
    reads: tuple[tuple[SizedTensor, ...], ...]
    producer: dict[str, int]
    readers: dict[str, set[int]]
    names: dict[str, set[str]]
    kept: frozenset[str]

    @classmethod
    def of(cls, graph: SizedGraph) -> "_Flow":
        root: dict[str, SizedTensor] = {}
        names: dict[str, set[str]] = defaultdict(set)
        nodes: list[SizedNode] = []
        reads: list[tuple[SizedTensor, ...]] = []
        producer: dict[str, int] = {}
        readers: dict[str, set[int]] = defaultdict(set)
        for node in graph.nodes:
            seen = tuple(dict.fromkeys(root.get(tensor.name, tensor) for tensor in node.reads))
            if node.op in VIEWS:
                root |= {tensor.name: seen[0] for tensor in node.outputs if seen}
                names[seen[0].name if seen else ""] |= {tensor.name for tensor in node.outputs}
                continue
            for tensor in seen:
                readers[tensor.name].add(len(nodes))
            producer |= {tensor.name: len(nodes) for tensor in node.outputs}
            nodes.append(node)
            reads.append(seen)
        kept = frozenset(root.get(tensor.name, tensor).name for tensor in graph.outputs)
        return cls(tuple(nodes), tuple(reads), producer, readers, names, kept)

    def sources(self, index: int) -> list[int]:
        """The nodes that compute a node's inputs, the last one first."""
        found = {self.producer[tensor.name] for tensor in self.reads[index] if tensor.name in self.producer}
        return sorted(found, reverse=True)


def _anchors(flow: _Flow) -> list[int]:
    """For every node the node after which its layer is named: itself, where it is a layer of its own."""
    anchors: list[int] = []
    ancestors: list[frozenset[int]] = []
    for index, node in enumerate(flow.nodes):
        sources = flow.sources(index)
        ancestors.append(frozenset(sources).union(*(ancestors[source] for source in sources)))
        anchors.append(index)
        if node.op in ELEMENTWISE:
            anchors[index] = next(_layers_to_end(flow, index, anchors, ancestors), index)
        elif node.op in MATRIX_OPS:
            _take_prologue(flow, index, anchors)
    return anchors


def _layers_to_end(flow: _Flow, index: int, anchors: list[int], ancestors: list[frozenset[int]]) -> Iterator[int]:
    """The matrix layers that could have a node as their epilogue."""
    sources = flow.sources(index)
    for source in sources:
        layer = anchors[source]
        others = [other for other in sources if anchors[other] != layer]
        if flow.nodes[layer].op in MATRIX_OPS and not any(
            anchors[ancestor] == layer for other in others for ancestor in ancestors[other]
        ):
            yield layer


def _take_prologue(flow: _Flow, matrix: int, anchors: list[int]) -> None:
    """Moves the elementwise nodes that a matrix node alone reads, one through the other, into its layer."""
    waiting = [matrix]
    while waiting:
        for source in flow.sources(waiting.pop()):
            node = flow.nodes[source]
            written = {tensor.name for tensor in node.outputs}
            readers = {reader for name in written for reader in flow.readers[name]}
            alone = all(reader <= matrix and anchors[reader] == matrix for reader in readers)
            if node.op in ELEMENTWISE and anchors[source] == source and alone and written.isdisjoint(flow.kept):
                anchors[source] = matrix
                waiting.append(source)


def _layer(flow: _Flow, anchor: int, indices: list[int]) -> Layer:
    node, inside = flow.nodes[anchor], set(indices)
    work = total([work_of(flow.nodes[index]) for index in indices])
    written = {tensor.name for index in indices for tensor in flow.nodes[index].outputs}
    nbytes = _bytes_in(flow, inside, written) + _bytes_out(flow, inside)
    return Layer(
        name=node.name,
        op=node.op,
        shape=node.outputs[0].shape,
        kernel=node.inputs[1].shape[2:] if node.op == "Conv" and node.inputs[1] else (),
        ops=tuple(flow.nodes[index].op for index in indices),
        tensors=frozenset(written.union(*(flow.names.get(name, ()) for name in written))),
        work=Work(work.matrix_flops, work.vector_flops, nbytes, launches=1),
    )


def _bytes_in(flow: _Flow, inside: set[int], written: set[str]) -> int:
    whole: dict[str, int] = {}
    parts = 0
    for index in inside:
        for tensor in flow.reads[index]:
            if tensor.name in written:
                continue
            if flow.nodes[index].op in READ_WHAT_THEY_WRITE:
                parts += sum(output.nbytes for output in flow.nodes[index].outputs)
                break
            whole[tensor.name] = tensor.nbytes
    return sum(whole.values()) + parts


def _bytes_out(flow: _Flow, inside: set[int]) -> int:
    return sum(
        tensor.nbytes
        for index in inside
        for tensor in flow.nodes[index].outputs
        if tensor.name in flow.kept or flow.readers[tensor.name] - inside
    )
