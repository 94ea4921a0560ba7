"""Run an oracle (the original framework, in a process of its own) and read what it answered."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.closeness import noise_of
from converters.errors import ConversionError
from converters.offline import OFFLINE

EXACT = 32  # samples that it is asked in FP64: what FP32 itself rounds off
FRESH = 8  # samples that a fresh original is asked once more, in reverse
SAME = 1e-3  # of the spread of its answers: two right runs differ by 1e-6


def last_words(said: str) -> str:
    """The line of a process's stderr that says why it ended, without the traceback before it."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    last = re.sub(r"\x1b\[[0-9;]*m", "", lines[-1] if lines else "it said nothing")[:600]
    if re.match(r"IndexError: (?!list|tuple|string).*out of range", last):
        last += (
            ": a token or an id lies beyond the model's embedding. The tokenizer and the weights "
            "must be of one model; for tensors give --samples with ids that it has"
        )
    return last


def places_again(samples: int) -> list[int]:
    """Which of so many samples are asked again: from the last, which are the longest, to the
    first."""
    chosen = {round(part * (samples - 1) / (FRESH - 1)) for part in range(FRESH)}
    return sorted(chosen, reverse=True)


def places_exact(samples: int, most: int = EXACT) -> list[int]:
    """Which of so many samples are asked in FP64, evenly."""
    return sorted({round(place) for place in np.linspace(0, samples - 1, min(most, samples))})


def fp32_noise(
    reported: Mapping[str, np.ndarray],
    exact: Callable[[list[int]], Mapping[str, np.ndarray]],
    most: int = EXACT,
) -> dict[str, np.ndarray]:
    """What FP32 rounds off of each of the arrays ``reported`` [n, ...]: ``NAME_noise`` FP64 [...].

    ``exact`` answers in FP64, under the same names, to the samples at the places that it is given;
    an original that cannot do that is measured by units of rounding alone (``Spread.floor``). At
    ``most`` so many samples are asked.
    """
    positions = places_exact(len(next(iter(reported.values()))), most)
    try:
        precise = exact(positions)
        return {
            f"{name}_noise": noise_of(reported[name], precise[name], positions) for name in reported
        }
    except Exception:  # a model may raise anything on a type that its author never tried
        return {f"{name}_noise": np.zeros(reported[name].shape[1:]) for name in reported}


def require_no_past(
    first: np.ndarray, again: np.ndarray, positions: Sequence[int], names: Sequence[str]
) -> None:
    """Ends the process where a fresh original answers otherwise (``again`` [m, ...], in the order
    of ``positions``) than the one that was asked all samples in turn (``first`` [n, ...]): its
    answers depend on what came before, and no graph's do."""
    if not np.isfinite(first).all():
        return  # the proof says so, in its own words
    gaps = np.abs(first[list(positions)].astype(np.float64) - again).reshape(len(positions), -1)
    apart = np.abs(first.astype(np.float64) - np.median(first, axis=0)).reshape(len(first), -1)
    limit = max(SAME * float(np.median(apart.max(axis=1))), 1e-5 * float(np.abs(first).max()))
    worst = int(gaps.max(axis=1).argmax())
    if not gaps.max() <= limit:
        sys.exit(
            f"a fresh one answers {names[positions[worst]][:60]!r} otherwise, by "
            f"{gaps.max():.3g}: it "
            "keeps something from call to call, which no graph can follow, or its source makes "
            "another model each time (random weights?): load a state_dict"
        )


def ask(module: str, *arguments: str | Path, answers: Path) -> dict[str, np.ndarray]:
    """The arrays that ``python -m MODULE ARGUMENTS ANSWERS`` wrote; ConversionError when it failed,
    with the last that it said."""
    command = [sys.executable, "-m", module, *map(str, arguments), str(answers)]
    run = subprocess.run(command, capture_output=True, text=True, env=OFFLINE, check=False)
    if run.returncode:
        raise ConversionError(f"the original model could not answer: {last_words(run.stderr)}")
    with np.load(answers) as stored:
        return dict(stored)
