"""Where in a graph whole heads or channels can be cut out: found by following its operators."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

# They work on each number for itself: what they do to a channel, they do to that channel alone.
ELEMENTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sqrt", "Exp", "Erf", "Clip", "Cast"),
        *(
            "Relu",
            "LeakyRelu",
            "Elu",
            "Gelu",
            "Tanh",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Silu",
        ),
        *("Swish", "Mish", "Softplus", "Softsign", "Identity"),
    )
)


@dataclass(frozen=True)
class Block:
    """``columns`` are the constants that lose columns (matrices and biases), ``first`` the matrix
    among them that importance goes by, ``last`` the matrix that loses the rows; a unit is ``size``
    of them."""

    columns: tuple[str, ...]
    first: str
    last: str
    size: int = 1


def channel_blocks(graph: onnx.GraphProto) -> list[Block]:
    """Layers that widen and narrow again: a product, elementwise operators, another product."""
    view = _View(graph)
    found = (view.channels(node) for node in view.products)
    return _apart([block for block in found if block])


def attention_blocks(graph: onnx.GraphProto) -> list[Block]:
    """Attentions: three products, scores and their mixture, and a product with what comes out."""
    view = _View(graph)
    found = (view.attention(node) for node in view.products)
    return _apart([block for block in found if block])


def _apart(blocks: list[Block]) -> list[Block]:
    """Without those whose constants another block, or another operator, uses too."""
    used: dict[str, int] = {}
    for block in blocks:
        for name in (*block.columns, block.last):
            used[name] = used.get(name, 0) + 1
    return [b for b in blocks if all(used[name] == 1 for name in (*b.columns, b.last))]


class _View:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
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
        """Everything between one other product and this one, if it is elementwise and used here
        alone."""
        width = self.constants[last.input[1]].dims[0]
        found = self._region(last.input[0], ELEMENTWISE)
        if found is None:
            return None
        inside, products = found
        if len(products) != 1 or not self._closed([*inside, *products], last):
            return None
        first = products[0].input[1]
        vectors = self._vectors(inside, width)
        if vectors is None or self.constants[first].dims[1] != width:
            return None
        return Block((first, *vectors), first, last.input[1])

    def attention(self, last: onnx.NodeProto) -> Block | None:
        """Reshape, Transpose and the mixture of values, made from three products of one width."""
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
        value = sides[1][1] if sides[1] else []
        if len(products) != 3 or len(value) != 1 or not size or width % size:
            return None
        columns: list[str] = []
        for product in products.values():
            if self.constants[product.input[1]].dims[1] != width:
                return None
            columns += [product.input[1], *self._bias(product, width)]
        return Block(tuple(columns), value[0].input[1], last.input[1], size)

    def _behind(self, name: str, passed: tuple[str, ...]) -> onnx.NodeProto | None:
        """What made this, behind one operator of each of these kinds."""
        for kind in passed:
            node = self.makers.get(name)
            if node is None or node.op_type != kind:
                return None
            name = node.input[0]
        return self.makers.get(name)

    def _head_size(self, name: str) -> int:
        """The last number of the shape that values are split by, if their number is left open."""
        split = self.makers[self.makers[name].input[0]]
        numbers = self._shape_end(split.input[1])
        return numbers[-1] if len(numbers) >= 2 and numbers[-2] == -1 else 0

    def _shape_end(self, name: str) -> list[int]:
        """The constant numbers at the end of a shape."""
        if name in self.constants:
            return [int(each) for each in numpy_helper.to_array(self.constants[name]).reshape(-1)]
        node = self.makers.get(name)
        if node is None or node.op_type != "Concat":
            return []
        numbers: list[int] = []
        for part in node.input:
            numbers = numbers + self._shape_end(part) if part in self.constants else []
        return numbers

    def _region(
        self, name: str, passed: frozenset[str] | None
    ) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]] | None:
        """The operators back to the next products, and these; None when one of another kind stands
        between or an input of the graph is reached (``passed`` None lets everything through)."""
        inside: dict[str, onnx.NodeProto] = {}
        products: dict[str, onnx.NodeProto] = {}
        left = [name]
        while left:
            each = left.pop()
            node = self.makers.get(each)
            if each in self.constants or each in inside or each in products or not each:
                continue
            if node is None:
                if passed is not None:
                    return None
                continue
            if self._is_product(node):
                products[each] = node
            elif passed is None or node.op_type in passed:
                inside[each] = node
                left += list(node.input)
            else:
                return None
        return list(inside.values()), list(products.values())

    def _closed(self, nodes: list[onnx.NodeProto], last: onnx.NodeProto) -> bool:
        """Whether nobody but these and ``last`` reads what they make."""
        own = {id(node) for node in [*nodes, last]}
        made = [name for node in nodes for name in node.output]
        return not self.outputs & set(made) and all(
            id(reader) in own for name in made for reader in self.readers.get(name, [])
        )

    def _vectors(self, nodes: list[onnx.NodeProto], width: int) -> list[str] | None:
        """The constants of this width that elementwise operators use; None when one of another
        size, or one that others read too, is among them."""
        found: list[str] = []
        for node in nodes:
            for name in node.input:
                tensor = self.constants.get(name)
                if tensor is None or np.prod(tensor.dims) == 1:
                    continue
                if list(tensor.dims) != [width] or len(self.readers[name]) > 1:
                    return None
                found.append(name)
        return found

    def _bias(self, product: onnx.NodeProto, width: int) -> Iterator[str]:
        for reader in self.readers.get(product.output[0], []):
            for name in reader.input if reader.op_type == "Add" else ():
                if name in self.constants and list(self.constants[name].dims) == [width]:
                    yield name
