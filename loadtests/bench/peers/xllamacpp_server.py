"""llama.cpp's own server, from the package ``xllamacpp``, with one slot for each stream."""
# Its packages are in a separate environment, which mypy does not check.
# mypy: disable-error-code="import-not-found"

import os
import threading

import xllamacpp

SLOTS = 8
CONTEXT = 1024  # tokens of a slot


def main() -> None:
    threads = len(os.sched_getaffinity(0))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = os.environ["BENCH_MODEL"]
    parameters.hostnames, parameters.port = ["127.0.0.1"], int(os.environ["BENCH_PORT"])
    parameters.n_parallel, parameters.n_ctx = SLOTS, SLOTS * CONTEXT
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)  # in a thread of its own, until it is collected
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main()
