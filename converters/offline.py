"""The environment in which models are loaded: nothing is fetched, nothing is sent, and no core kept
busy with waiting."""

import os

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Else ONNX Runtime (1.31) keeps a device id in ~/.cache and sends events to its maker.
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    # Read when OpenMP is loaded. Threads that spin while they wait take the core from whoever else
    # is at work, and then wait for it themselves: on a busy machine of two cores 240 short texts
    # cost an original 13 s of processor time, and without that 2 s.
    "OMP_WAIT_POLICY": "PASSIVE",
}

OFFLINE = {**os.environ, **_SETTINGS}


def go_offline() -> None:
    """Apply the settings to this process; call it before transformers is imported."""
    os.environ.update(_SETTINGS)
