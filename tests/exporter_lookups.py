"""What torch's exporter looks up anew in each export: which operators there are, once for each
namespace, and what torchlib's functions are called, by parsing their sources. A process that
exports one model hardly notices. One that exports fifty, and has unpickled models (which asks
``torch.ops`` for names, and each becomes a namespace), spends half of its time so.
"""

from functools import cache
from types import ModuleType
from typing import Any


def remember(torch: ModuleType) -> None:
    """Look them up once in this process; operators again where there are new ones. AttributeError
    or ImportError if this torch has them elsewhere."""
    from torch._export import utils
    from torch.onnx._internal._lazy_import import onnxscript_apis

    materialize = utils._materialize_cpp_cia_ops
    registered = torch._C._dispatch_get_registrations_for_dispatch_key
    known: list[str] = []

    def materialize_new() -> None:
        names = registered("CompositeImplicitAutograd")
        if names != known:
            materialize()
            known[:] = names

    @cache
    def functions() -> Any:
        return onnxscript_apis.__getattr__("get_torchlib_ops")()

    utils._materialize_cpp_cia_ops = materialize_new
    onnxscript_apis.get_torchlib_ops = functions
