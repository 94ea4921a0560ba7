"""Which names of TensorRT's a file uses, read from its syntax tree."""

import ast
import builtins
from collections import defaultdict
from collections.abc import Iterator, Mapping

TENSORRT = "tensorrt"


def used(source: str) -> set[str]:
    """Every attribute, method, enumerator and keyword by which the file could mean TensorRT.

    On the safe side: an attribute counts unless what it hangs on is known to be another's, so that
    a name which this reader does not understand is looked up and not left out. Another's are
    Python's own, names imported from elsewhere, parameters annotated with other types, the file's
    own classes, and whatever is only ever assigned from these.
    """
    tree = ast.parse(source)
    aliases = [a for node in ast.walk(tree) for a in _aliases(node)]
    alias = next((a.asname or a.name for a in aliases if a.name == TENSORRT), None)
    return _Reader(tree, alias).names() if alias else set()


class _Reader:
    def __init__(self, tree: ast.Module, alias: str) -> None:
        self._tree = tree
        self._others = {*dir(builtins), "self", *_anothers(tree, alias)}
        bindings = _bindings(tree)
        while more := {
            name
            for name, values in bindings.items()
            if name not in {*self._others, alias} and not any(map(self._is_tensorrts, values))
        }:
            self._others |= more

    def names(self) -> set[str]:
        found = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute) and self._is_tensorrts(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and self._is_tensorrts(node.func):
                found |= {keyword.arg for keyword in node.keywords if keyword.arg}
            elif isinstance(node, ast.ClassDef) and any(map(self._is_tensorrts, node.bases)):
                found |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        return {name for name in found if not name.startswith("_")}

    def _is_tensorrts(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(name):
                return name not in self._others
            case ast.Attribute(ast.Name("self"), field):
                return f"self.{field}" not in self._others
            case ast.Attribute(value) | ast.Subscript(value):
                return self._is_tensorrts(value)
            case ast.Call(function):
                return self._is_tensorrts(function)
            case ast.BoolOp(values=values):
                return any(map(self._is_tensorrts, values))
            case ast.Constant() | ast.JoinedStr() | ast.BinOp() | ast.Compare():
                return False
        return True


def _aliases(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


def _anothers(tree: ast.Module, alias: str) -> Iterator[str]:
    """Names, and fields of ``self``, that are said to be something else's."""
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
    """What each name, and each field of ``self``, is assigned."""
    found: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.For | ast.comprehension):
            pairs = [(node.target, node.iter)]
        elif isinstance(node, ast.withitem):
            pairs = [(node.optional_vars, node.context_expr)]
        for target, value in pairs:
            for each in getattr(target, "elts", [target]):
                if each is not None:
                    found[ast.unparse(each)].append(value)
    return found


def _mentions(node: ast.AST, alias: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == alias for each in ast.walk(node))
