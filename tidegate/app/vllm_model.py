"""``--engine vllm``: a language model's folder in the repository, for Triton's vLLM backend.

Nothing is converted, since vLLM reads Hugging Face folders itself, and nothing is proved: that
backend needs a GPU. The public side is that of a model on our own engine (``ensembles.causal_lm``),
so that clients notice no change.
"""

import json
from collections.abc import Callable
from pathlib import Path

from ensembles.causal_lm import VLLM_MAX_NUM_SEQS, Declaration
from modelspec.golden import Golden
from modelspec.hardware import VLLM
from modelspec.held import held_folder
from modelspec.layout import SETTINGS_FILE, staging_folder
from modelspec.staging import stage_model
from serving.errors import PublishFailed
from serving.triton.installation import find_triton
from tidegate.app.paths import Paths

TASK = "causal-lm"
# Keeps a probe independent of the weights, which nothing here has run: of one choice, the engine
# can only generate that one.
_CHOICE = "yes"
_SAMPLING = {
    "temperature": 0,
    "max_tokens": 8,
    "structured_outputs": json.dumps({"choice": [_CHOICE]}),
}
GOLDEN = Golden(
    request={
        "text_input": "Answer yes or no.",
        "sampling_parameters": json.dumps(_SAMPLING),
        "exclude_input_in_output": True,
    },
    expect={"text_output": [_CHOICE]},
    tolerance=0.0,
)


def write(name: str, path: Path, paths: Paths, report: Callable[[str], None]) -> Path:
    """Write ``NAME/config.pbtxt`` and ``NAME/1/model.json``, which names the Hugging Face folder
    ``path``, and return the folder.

    Raises SourceRefused for a folder that is not a language model's, and PublishFailed where the
    name is taken or the repository is one that this machine serves without vLLM.
    """
    from converters.sources.huggingface import HuggingFaceFolder
    from converters.tasks.causal_lm.folder import LanguageModelFolder

    source = HuggingFaceFolder.open(path.resolve())
    source.require_head(TASK, "AutoModelForCausalLM")
    folder = LanguageModelFolder(source)
    repository = paths.repository
    if (repository / name).exists():
        raise PublishFailed(f"the name is taken: {paths.shown(repository / name)} exists")
    if repository.is_dir() and any(repository.iterdir()) and not _has_vllm():
        raise PublishFailed(
            f"{paths.shown(repository)}/ is served here by a Triton without the vLLM backend, "
            "which could then not load all of it: pass --repository"
        )
    pipeline = Declaration(
        name,
        golden=GOLDEN,
        architecture=folder.architecture,
        context_length=folder.context_length,
        template=folder.template,
        variables=folder.special_tokens,
        markers=folder.markers,
        backend=VLLM,
        card={"task": TASK, "proof": "none: vLLM's answers were not compared with the original's"},
    ).pipeline()
    settings = {
        "model": str(source.path),
        "max_model_len": folder.context_length,
        "max_num_seqs": VLLM_MAX_NUM_SEQS,
        "gpu_memory_utilization": 0.9,
        "disable_log_stats": False,  # Triton's metrics of the engine come from them
    }
    staging = staging_folder(repository)
    staging.mkdir(parents=True, exist_ok=True)
    repository.mkdir(parents=True, exist_ok=True)
    with held_folder(staging, name) as work:
        file = work / SETTINGS_FILE
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        staged = stage_model(work, pipeline.models[-1], {SETTINGS_FILE: file})
        staged.rename(repository / name)
    report(
        f"{name}: written into {paths.shown(repository)}/ for Triton's vLLM backend; nothing was "
        f"run or proved. {SETTINGS_FILE} names {source.path}: correct it on the GPU machine"
    )
    return repository / name


def _has_vllm() -> bool:
    return (find_triton().backends / VLLM).is_dir()
