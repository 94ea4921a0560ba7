"""The environment in which models are loaded: nothing is downloaded, nothing is sent, and no thread
spins while it waits."""

import os

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Otherwise ONNX Runtime (1.31) stores a device id in ~/.cache and sends telemetry events.
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    # Read when OpenMP is loaded. Threads that spin while they wait take a core from other work, and
    # then have to wait for it themselves: on a busy machine with two cores, 240 short texts cost an
    # original 13 s of processor time with spinning and 2 s without.
    "OMP_WAIT_POLICY": "PASSIVE",
}

OFFLINE = {**os.environ, **_SETTINGS}


def go_offline() -> None:
    """Apply the settings to this process; call it before transformers is imported."""
    os.environ.update(_SETTINGS)
