"""The places in a graph where whole heads or channels can be cut out, found from its operators."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

# They act on each number separately: an operation on a channel affects that channel alone.
ELEMENTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sqrt", "Exp", "Erf", "Clip", "Cast"),
        *("Relu", "LeakyRelu", "Elu", "Gelu", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish"),
        *("Silu", "Swish", "Mish", "Softplus", "Softsign", "Identity"),
    )
)


@dataclass(frozen=True)
class Block:
    """``columns`` are the constants that lose columns (matrices and biases), ``first`` the matrix
    among them that determines the importance, ``last`` the matrix that loses rows; a unit is
    ``size`` of these columns and rows."""

    columns: tuple[str, ...]
    first: str
    last: str
    size: int = 1


def channel_blocks(graph: onnx.GraphProto) -> list[Block]:
    """Layers that widen and narrow again: a product, elementwise operators, another product."""
    view = _View(graph)
    blocks = (view.channels(node) for node in view.products)
    return _disjoint([block for block in blocks if block])


def attention_blocks(graph: onnx.GraphProto) -> list[Block]:
    """Attentions: three products, scores, weighted values, and a product with the result."""
    view = _View(graph)
    blocks = (view.attention(node) for node in view.products)
    return _disjoint([block for block in blocks if block])


def _disjoint(blocks: list[Block]) -> list[Block]:
    """The blocks that share no constant with another block."""
    used: dict[str, int] = {}
    for block in blocks:
        for name in (*block.columns, block.last):
            used[name] = used.get(name, 0) + 1
    return [b for b in blocks if all(used[name] == 1 for name in (*b.columns, b.last))]


class _View:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in graph.output}
        self.products = [node for node in graph.node if self._is_product(node)]

    def _is_product(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "MatMul" or node.input[1] not in self.constants:
            return False
        weight = self.constants[node.input[1]]
        return len(weight.dims) == 2 and len(self.readers[node.input[1]]) == 1

    def channels(self, last: onnx.NodeProto) -> Block | None:
        """The block between one other product and this one, if everything in between is elementwise
        and used nowhere else."""
        width = self.constants[last.input[1]].dims[0]
        region = self._region(last.input[0], ELEMENTWISE)
        if region is None:
            return None
        inside, products = region
        if len(products) != 1 or not self._closed([*inside, *products], last):
            return None
        first = products[0].input[1]
        vectors = self._vectors(inside, width)
        if vectors is None or self.constants[first].dims[1] != width:
            return None
        return Block((first, *vectors), first, last.input[1])

    def attention(self, last: onnx.NodeProto) -> Block | None:
        """The block of Reshape, Transpose and the weighted values, from three products of one
        width."""
        mixture = self._behind(last.input[0], ("Reshape", "Transpose"))
        if mixture is None or mixture.op_type != "MatMul" or self._is_product(mixture):
            return None
        values = self._behind(mixture.input[1], ("Transpose", "Reshape"))
        if values is None:
            return None
        sides = [self._region(name, None) for name in mixture.input]
        width = self.constants[last.input[1]].dims[0]
        products = {p.output[0]: p for side in sides if side for p in side[1]}
        size = self._head_size(mixture.input[1])
        value_products = sides[1][1] if sides[1] else []
        if len(products) != 3 or len(value_products) != 1 or not size or width % size:
            return None
        columns: list[str] = []
        for product in products.values():
            if self.constants[product.input[1]].dims[1] != width:
                return None
            columns += [product.input[1], *self._bias(product, width)]
        return Block(tuple(columns), value_products[0].input[1], last.input[1], size)

    def _behind(self, name: str, operators: tuple[str, ...]) -> onnx.NodeProto | None:
        """The producer of this tensor, before exactly these operators, last one first."""
        for operator in operators:
            node = self.producers.get(name)
            if node is None or node.op_type != operator:
                return None
            name = node.input[0]
        return self.producers.get(name)

    def _head_size(self, name: str) -> int:
        """The size of a head: the last number of the shape that splits the values, if the number of
        heads is left open."""
        split = self.producers[self.producers[name].input[0]]
        numbers = self._shape_end(split.input[1])
        return numbers[-1] if len(numbers) >= 2 and numbers[-2] == -1 else 0

    def _shape_end(self, name: str) -> list[int]:
        """The constant numbers at the end of a shape."""
        if name in self.constants:
            shape = numpy_helper.to_array(self.constants[name])
            return [int(number) for number in shape.reshape(-1)]
        node = self.producers.get(name)
        if node is None or node.op_type != "Concat":
            return []
        numbers: list[int] = []
        for part in node.input:
            numbers = numbers + self._shape_end(part) if part in self.constants else []
        return numbers

    def _region(
        self, name: str, allowed: frozenset[str] | None
    ) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]] | None:
        """The operators back to the nearest products, and these products. None if another operator
        or an input of the graph is reached; if ``allowed`` is None, every operator is allowed."""
        inside: dict[str, onnx.NodeProto] = {}
        products: dict[str, onnx.NodeProto] = {}
        pending = [name]
        while pending:
            tensor = pending.pop()
            node = self.producers.get(tensor)
            if tensor in self.constants or tensor in inside or tensor in products or not tensor:
                continue
            if node is None:
                if allowed is not None:
                    return None
                continue
            if self._is_product(node):
                products[tensor] = node
            elif allowed is None or node.op_type in allowed:
                inside[tensor] = node
                pending += list(node.input)
            else:
                return None
        return list(inside.values()), list(products.values())

    def _closed(self, nodes: list[onnx.NodeProto], last: onnx.NodeProto) -> bool:
        """Whether only these nodes and ``last`` read their outputs."""
        members = {id(node) for node in [*nodes, last]}
        tensors = [name for node in nodes for name in node.output]
        return not self.outputs & set(tensors) and all(
            id(reader) in members for name in tensors for reader in self.readers.get(name, [])
        )

    def _vectors(self, nodes: list[onnx.NodeProto], width: int) -> list[str] | None:
        """The constants of this width that elementwise operators use; None if one of them has
        another size or other readers."""
        vectors: list[str] = []
        for node in nodes:
            for name in node.input:
                tensor = self.constants.get(name)
                if tensor is None or np.prod(tensor.dims) == 1:
                    continue
                if list(tensor.dims) != [width] or len(self.readers[name]) > 1:
                    return None
                vectors.append(name)
        return vectors

    def _bias(self, product: onnx.NodeProto, width: int) -> Iterator[str]:
        for reader in self.readers.get(product.output[0], []):
            for name in reader.input if reader.op_type == "Add" else ():
                if name in self.constants and list(self.constants[name].dims) == [width]:
                    yield name
