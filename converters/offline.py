"""The environment in which models are loaded: nothing is fetched, and nothing is sent."""

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
}

OFFLINE = {**os.environ, **_SETTINGS}


def go_offline() -> None:
    """Apply the settings to this process; call it before transformers is imported."""
    os.environ.update(_SETTINGS)
