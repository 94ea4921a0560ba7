"""The TensorRT names that a file uses, read from its syntax tree."""

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterator, Mapping

TENSORRT = "tensorrt"


def used(source: str) -> set[str]:
    """Every attribute, method, enumerator and keyword of the file that could be TensorRT's.

    When in doubt, a name counts: an attribute is left out only if its object is known to be
    foreign. Foreign are Python's builtins, names imported from elsewhere, parameters annotated with
    other types, the file's own classes, and whatever is only ever assigned from these.
    """
    tree = ast.parse(source)
    aliases = [a for node in ast.walk(tree) for a in _aliases(node)]
    alias = next((a.asname or a.name for a in aliases if a.name == TENSORRT), None)
    return _Reader(tree, alias).names() if alias else set()


class _Reader:
    def __init__(self, tree: ast.Module, alias: str) -> None:
        self._tree = tree
        self._foreign = {*dir(builtins), "self", *_foreign_names(tree, alias)}
        bindings = _bindings(tree)
        while new := {
            name
            for name, values in bindings.items()
            if name not in {*self._foreign, alias} and not any(map(self._is_tensorrt, values))
        }:
            self._foreign |= new

    def names(self) -> set[str]:
        names = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute) and self._is_tensorrt(node.value):
                names.add(node.attr)
            elif isinstance(node, ast.Call) and self._is_tensorrt(node.func):
                names |= {keyword.arg for keyword in node.keywords if keyword.arg}
            elif isinstance(node, ast.ClassDef) and any(map(self._is_tensorrt, node.bases)):
                names |= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        return {name for name in names if not name.startswith("_")}

    def _is_tensorrt(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(name):
                return name not in self._foreign
            case ast.Attribute(ast.Name("self"), field):
                return f"self.{field}" not in self._foreign
            case ast.Attribute(value) | ast.Subscript(value):
                return self._is_tensorrt(value)
            case ast.Call(function):
                return self._is_tensorrt(function)
            case ast.BoolOp(values=values):
                return any(map(self._is_tensorrt, values))
            case ast.Constant() | ast.JoinedStr() | ast.BinOp() | ast.Compare():
                return False
        return True


def _aliases(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


def _foreign_names(tree: ast.Module, alias: str) -> Iterator[str]:
    """Names, and attributes of ``self``, that are declared as something other than TensorRT's."""
    for node in ast.walk(tree):
        yield from (a.asname or a.name for a in _aliases(node) if a.name != TENSORRT)
        if isinstance(node, ast.arg) and node.annotation and not _mentions(node.annotation, alias):
            yield node.arg
        if isinstance(node, ast.AnnAssign) and not _mentions(node.annotation, alias):
            yield ast.unparse(node.target)
        if isinstance(node, ast.ClassDef):
            yield node.name
            yield from (f"self.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef))


def _bindings(tree: ast.Module) -> Mapping[str, list[ast.expr]]:
    """The values assigned to each name and each attribute of ``self``."""
    bindings: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.For | ast.comprehension):
            pairs = [(node.target, node.iter)]
        elif isinstance(node, ast.withitem):
            pairs = [(node.optional_vars, node.context_expr)]
        for target, value in pairs:
            for element in getattr(target, "elts", [target]):
                if element is not None:
                    bindings[ast.unparse(element)].append(value)
    return bindings


def _mentions(node: ast.AST, alias: str) -> bool:
    return any(isinstance(child, ast.Name) and child.id == alias for child in ast.walk(node))
