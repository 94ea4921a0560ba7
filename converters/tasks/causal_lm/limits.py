"""How far a language model's answers may be from the original's, by the file's own precision.

    python -m converters.tasks.causal_lm.limits      prints the table of docs/chat.md

``difference``: by how much (nats) the original may have preferred its own token where another was
generated; ``mean``: of log perplexity, and a third of the mean difference of a token's
log-probability; ``agreement``: smallest share of greedy tokens before the first other one;
``invariance``: prompts that may be continued differently among others than alone. The original's
weights are those of its folder, or of its file, dequantized; the engine keeps its KV cache in F16
and rounds what it multiplies with 8-bit weights.

Measured on SmolLM2-135M-Instruct and on ten random models of two layers (tests/tiny_models):

- f16: log perplexity up to 5e-5, a token's log-probability 0.0012 to 0.0019 (largest 0.018),
  agreement 0.94 and more, a lead of 0.004. So ``mean`` leaves three times that difference, and
  ``difference`` what two tokens that are each off by the largest may come to.
- q8_0: log perplexity up to 0.0032, a log-probability 0.027 to 0.046, a lead of 0.08 to 0.17,
  agreement 0.18 to 1: one token that is nearly as likely changes all that follow it, in a random
  model soon, so the lead says more.
- the planted faults (``faults``), which must be refused: a log-probability 0.77 and more.
"""

import sys

from converters.proof.tolerance import Tolerance

_F16 = Tolerance(difference=0.05, mean=0.002, cosine=0.0, agreement=0.8, invariance=0.0)
_Q8 = Tolerance(difference=0.5, mean=0.03, cosine=0.0, agreement=0.1, invariance=0.0)

LIMITS: dict[str, Tolerance] = {"f16": _F16, "q8_0": _Q8}


def table() -> str:
    lines = ["| precision | lead | log perplexity | agreement |", "|---|---|---|---|"]
    for name, limits in LIMITS.items():
        numbers = f"{limits.difference:g} | {limits.mean:g} | {limits.agreement:g}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
