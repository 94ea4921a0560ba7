"""The environment in which models are loaded: no hub is ever asked, and progress bars are off."""

import os

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

OFFLINE = {**os.environ, **_SETTINGS}


def go_offline() -> None:
    """Apply the settings to this process; call it before transformers is imported."""
    os.environ.update(_SETTINGS)
