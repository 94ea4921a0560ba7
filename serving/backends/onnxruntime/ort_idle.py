"""A request that is alone on the machine is run on two cores.

An instance of one thread leaves the other cores to others, and so most is answered under load: two
instances of two threads answer 0.75 to 0.95 of what two of one thread do. But where the other cores
have nothing to do, two threads run MiniLM in 0.65 to 0.9 of the time (docs/performance.md). So an
instance has a session of each kind, and takes the one with two threads while a core is idle. The
threads share the rows and columns of a product, not its sums: the results are the same to the bit,
but for products of two inputs (attention), which are rounded otherwise in some sizes: by up to 6e-6
of the largest.
"""

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path

from ort_graph import Config, ModelRefused
from ort_session import string_parameters

PARAMETER = "idle_thread_count"
THREADS = 2
# Smaller graphs are done before another thread has begun; larger ones would need much more memory.
SMALLEST, LARGEST = 4 << 20, 256 << 20
PRODUCTS = {
    "Conv",
    "Gemm",
    "MatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QLinearConv",
    "QLinearMatMul",
}
# Operators whose threads share no sum: a graph with others has one session, unless it asks for two.
# The threads of TreeEnsemble share the trees of a row; ScatterND adds without a lock, so that two
# threads lose some of what they add (ONNX Runtime 1.31).
ALIKE = PRODUCTS | set(
    """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant
    ConstantOfShape ConvTranspose Cos CumSum DequantizeLinear Div Dropout DynamicQuantizeLinear Elu
    Equal Erf Exp Expand Flatten Floor GRU Gather GatherElements GatherND Gelu GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
    InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax Max MaxPool Mean Min Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear RNN Range
    Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape
    Resize Round Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign Split Sqrt Squeeze
    Sub Sum Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905 - a page of quotes
)
LOADAVG = Path("/proc/loadavg")
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
HAND_OVER_S = 50e-6


def idle_threads(config: Config, file: Path, operators: Collection[str]) -> int:
    """With how many threads a request that is alone is to run; 0: with those of all others.

    The parameter ``idle_thread_count`` says it. Without it they are two where instances have one
    (``intra_op_thread_count``), and the graph, whose ``operators`` these are, has products that
    take long and nothing that two threads may answer otherwise. Never with more than there are
    cores. ModelRefused if it is no number.
    """
    parameters = string_parameters(config)
    usual = parameters.get("intra_op_thread_count", "")
    wanted = parameters.get(PARAMETER, "")
    if wanted and not wanted.isdecimal():
        raise ModelRefused(
            f"model '{config['name']}': parameter '{PARAMETER}' cannot be '{wanted}': write a "
            "number of threads"
        )
    if wanted:
        threads = int(wanted)
    else:
        has_products = not PRODUCTS.isdisjoint(operators)
        is_fit = SMALLEST <= file.stat().st_size <= LARGEST
        is_safe = ALIKE.issuperset(operators)
        threads = THREADS if usual == "1" and is_fit and has_products and is_safe else 0
    is_more = 0 < int(usual or 0) < threads
    return threads if is_more and threads <= cores() and LOADAVG.exists() else 0


def cores() -> int:
    """The cores that this process may use, by its affinity and its cgroup's quota."""
    count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(float, CPU_MAX.read_text(encoding="ascii").split())
        count = min(count, int(quota / period))
    return count


class IdleCores:
    """Whether ``threads`` threads would have a core each."""

    def __init__(self, threads: int) -> None:
        # This thread runs as well.
        self._most = cores() - threads + 1
        self._loadavg = os.open(LOADAVG, os.O_RDONLY)  # for as long as the process

    def __bool__(self) -> bool:
        # Whoever handed the request over may not have gone to sleep yet.
        if self._running() == self._most + 1:
            time.sleep(HAND_OVER_S)
        return self._running() <= self._most

    def _running(self) -> int:
        """The threads on this machine that run or want to: "0.20 0.18 0.12 1/80 11206". 2 us."""
        fields = os.pread(self._loadavg, 100, 0).split()
        return int(fields[3].partition(b"/")[0])
