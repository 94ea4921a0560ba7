"""``reproduce.sh`` beside an engine: the exact command, from any folder, on any machine.

It builds into another folder: a published version must stay what its manifest says.
"""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

from modelspec.files import atomic_write
from modelspec.layout import ENGINE_FILE, PLAN_FILE

SCRIPT = "reproduce.sh"
TARGET = "rebuilt-engine"


def write(folder: Path, options: Namespace) -> None:
    """Write the script for these options of ``onnx2trt``."""
    atomic_write(folder / SCRIPT, script(options), mode=0o755)


def script(options: Namespace) -> str:
    """The POSIX shell script. It takes the ONNX file from its own folder and everything else from
    ``options``."""
    flags = [f"--max-batch={options.max_batch}", f"--usual-batch={options.usual_batch}"]
    if options.lengths:
        flags.append(f"--lengths={','.join(map(str, options.lengths))}")
    flags.append(f"--workspace-mib={options.workspace_mib}")
    flags.append(f"--timing-cache={options.timing_cache.resolve()}")
    return "\n".join(
        [
            "#!/bin/sh",
            f"# Builds {PLAN_FILE} again from the {ENGINE_FILE} beside, for the GPU and the "
            "TensorRT of this",
            f"# machine: sh {SCRIPT} [FOLDER]. To prove and publish it: tidegate convert NAME "
            "--engine tensorrt",
            "set -eu",
            'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)',
            f"python={shlex.quote(sys.executable)}",
            '[ -x "$python" ] || python=python3',
            # -P: a folder named converters in the user's working directory is not ours.
            'exec "${PYTHON:-$python}" -P -m converters.tensorrt.onnx2trt '
            f'"$here/{ENGINE_FILE}" --output "${{1:-{TARGET}}}" {shlex.join(flags)}',
            "",
        ]
    )
