"""Run a reference program (the original framework in a process of its own) and read its answers."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from converters.offline import OFFLINE
from converters.proof.closeness import noise_of

EXACT = 32  # samples that the original also answers in FP64, to measure what FP32 rounds off
FRESH = 8  # samples that a fresh original answers once more, in reverse order
SAME = 1e-3  # of the spread of its answers: two correct runs differ by 1e-6


def last_words(stderr: str) -> str:
    """The line of a process's stderr that says why it ended, without the traceback before it."""
    lines = [" ".join(line.split()) for line in stderr.splitlines() if line.strip()]
    last = re.sub(r"\x1b\[[0-9;]*m", "", lines[-1] if lines else "no message")[:600]
    if re.match(r"IndexError: (?!list|tuple|string).*out of range", last):
        last += (
            ": a token or an id is outside the model's embedding table. The tokenizer and the "
            "weights must belong to the same model; for tensors, give --samples with valid ids"
        )
    return last


def repeat_positions(samples: int) -> list[int]:
    """The positions of the samples that are asked again: from the last, which are the longest, to
    the first."""
    positions = {round(part * (samples - 1) / (FRESH - 1)) for part in range(FRESH)}
    return sorted(positions, reverse=True)


def fp64_positions(samples: int, most: int = EXACT) -> list[int]:
    """The evenly spaced positions of the samples, at most ``most``, that are asked in FP64."""
    return sorted({round(position) for position in np.linspace(0, samples - 1, min(most, samples))})


def fp32_noise(
    outputs: Mapping[str, np.ndarray],
    exact: Callable[[list[int]], Mapping[str, np.ndarray]],
    most: int = EXACT,
) -> dict[str, np.ndarray]:
    """What FP32 rounds off each of the arrays ``outputs`` [n, ...]: ``NAME_noise`` FP64 [...].

    ``exact`` returns the FP64 outputs, under the same names, to the samples at the positions that
    it receives, at most ``most``. For an original that cannot compute in FP64 the noise is 0, and
    only units of rounding count (``Spread.floor``).
    """
    positions = fp64_positions(len(next(iter(outputs.values()))), most)
    try:
        precise = exact(positions)
        return {
            f"{name}_noise": noise_of(outputs[name], precise[name], positions) for name in outputs
        }
    except Exception:  # a model may raise anything for a dtype that its author never tried
        return {f"{name}_noise": np.zeros(outputs[name].shape[1:]) for name in outputs}


def noise_of_fp32(
    outputs: Mapping[str, np.ndarray],
    exact: Callable[[list[int]], Mapping[str, np.ndarray]],
    most: int = EXACT,
) -> dict[str, np.ndarray]:
    """As ``fp32_noise``, under the outputs' own names; only for those that are FP32, and hold
    something."""
    floats = {
        name: values
        for name, values in outputs.items()
        if values.dtype == np.float32 and values.size
    }
    if not floats:
        return {}
    noise = fp32_noise(floats, exact, most)
    return {name: noise[f"{name}_noise"] for name in floats}


def require_stateless(
    first: np.ndarray, again: np.ndarray, positions: Sequence[int], names: Sequence[str]
) -> None:
    """End the process if a fresh original's answers (``again`` [m, ...], in the order of
    ``positions``) differ from those of the one that answered all samples in turn (``first``
    [n, ...]): its answers depend on earlier calls, and no graph's do."""
    if not np.isfinite(first).all():
        return  # the proof reports this itself
    gaps = np.abs(first[list(positions)].astype(np.float64) - again).reshape(len(positions), -1)
    spread = np.abs(first.astype(np.float64) - np.median(first, axis=0)).reshape(len(first), -1)
    limit = max(SAME * float(np.median(spread.max(axis=1))), 1e-5 * float(np.abs(first).max()))
    worst = int(gaps.max(axis=1).argmax())
    if not gaps.max() <= limit:
        sys.exit(
            f"a fresh one answers {names[positions[worst]][:60]!r} differently, by "
            f"{gaps.max():.3g}: it keeps state from call to call, which no graph can follow, or "
            "its source builds another model each time (random weights?): load a state_dict"
        )


def ask(module: str, *arguments: str | Path, answers: Path) -> dict[str, np.ndarray]:
    """The arrays that ``python -m MODULE ARGUMENTS ANSWERS`` wrote; ConversionError with the last
    line of its stderr if it failed."""
    command = [sys.executable, "-m", module, *map(str, arguments), str(answers)]
    process = subprocess.run(command, capture_output=True, text=True, env=OFFLINE, check=False)
    if process.returncode:
        reason = last_words(process.stderr)
        raise ConversionError(f"the original model could not answer: {reason}")
    with np.load(answers) as stored:
        return dict(stored)
