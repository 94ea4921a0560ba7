"""The sample texts in a Reference."""

import numpy as np

from converters.proof.reference import Reference


def reference_texts(reference: Reference) -> list[str]:
    """The texts, in the order of all other arrays of ``reference.outputs``."""
    return [str(text) for text in reference.outputs["texts"]]


def few_of_each_length(texts: list[str], buckets: int) -> list[str]:
    """A few texts for the slow checks: short ones, and those that fill the buckets."""
    return [*texts[:16], *texts[-buckets:]]


def as_text_array(texts: list[str]) -> np.ndarray:
    """Unicode [n]. NumPy drops trailing NULs, which no sample has."""
    return np.array(texts, dtype=np.str_)
