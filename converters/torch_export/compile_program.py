"""``python -m converters.torch_export.compile_program PROGRAM TARGET DEVICE``: AOTInductor.

A process of its own, because AOTInductor leaves caches, settings and worker processes behind. The
last line on stderr is the reason where it fails (exit code 1).
"""

import sys
import warnings
from pathlib import Path

import torch
from torch.export.passes import move_to_device_pass

from converters.torch_export.stamp import full_fp32

USAGE = 2
SETTINGS = {
    # The config says how many threads run, not the machine that compiles.
    "cpp.dynamic_threads": True,
    # They take half a minute, and pay only where much is compiled with one cache.
    "aot_inductor.precompile_headers": False,
    "cpp_cache_precompile_headers": False,
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        sys.stderr.write(f"{__doc__}\n")
        return USAGE
    source, target, device = arguments
    warnings.simplefilter("ignore")
    full_fp32()
    program = torch.export.load(source)
    if device != "cpu":
        program = move_to_device_pass(program, device)
    # The name inside the package is that of the file.
    Path(target).unlink(missing_ok=True)
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=target, inductor_configs=SETTINGS
        )
    except Exception as error:  # Inductor's errors share no base class
        reason = " ".join(str(error).split())[:300]
        sys.stderr.write(f"\n{type(error).__name__}: {reason}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
