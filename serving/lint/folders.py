"""Files and folders: what is missing, and what is in the way."""

import re
from collections.abc import Iterator
from pathlib import Path

from modelspec.layout import CONFIG_FILE
from modelspec.names import MODEL_NAME, RESERVED_NAMES
from modelspec.pbtxt import parse
from serving.errors import Tampered
from serving.lint.finding import Finding, error, info, warning
from serving.lint.reading import Model
from serving.repository.model_repository import CANDIDATE_SUFFIX, ModelRepository

# Editors, systems and tools leave these, and Triton takes each for a change to the model.
_STRAY = re.compile(
    r"(.*\.sw[a-p]|.*~|\.DS_Store|\.ipynb_checkpoints|__pycache__|.*\.tmp|.*\.bak)\Z"
)
_ALMOST_A_VERSION = re.compile(r"(v\d+|0\d+)\Z", re.IGNORECASE)
# Backends that need their file; others have more than one, or create it.
_LOOKS_IN_VERSION = (
    "onnxruntime",
    "tensorrt",
    "pytorch",
    "tensorflow",
    "openvino",
    "python",
    "vllm",
)
_SHELL = re.compile(r"""[\s'"`$&;|<>(){}\[\]*?!\\#~]""")
_LARGEST_VERSION = 2**63 - 1
_LFS = b"version https://git-lfs.github.com"


def check(model: Model) -> Iterator[Finding]:
    yield from _folder(model)
    if model.fault:
        yield error("config-broken", model.location, model.fault, "correct that line of the file")
        yield from _beside(model)
        return
    if not _is_stray(model):
        yield from _config(model)
        yield from _versions(model)
        yield from _beside(model)
        yield from _manifest(model)


def _is_stray(model: Model) -> bool:
    return not model.claims and CONFIG_FILE not in model.entries


def _folder(model: Model) -> Iterator[Finding]:
    name = model.name
    if name.endswith(CANDIDATE_SUFFIX):
        yield warning(
            "candidate-left", name, "a killed publisher left it", "run tidegate up: it clears it up"
        )
    elif _is_stray(model):
        yield warning(
            "stray-folder",
            name,
            "has neither a config nor a version folder; to Triton every subfolder is a model, and "
            "it reports this one as broken",
            "move it out of the repository",
        )
    elif model.is_python_based and _SHELL.search(name):
        yield error(
            "name-illegal",
            name,
            "has characters that a shell interprets, and Triton starts Python models through a "
            "shell: it would wait forever",
            "use letters, digits, '.', '_' and '-', beginning with a letter or a digit",
        )
    elif not MODEL_NAME.match(name) or ".." in name:
        # As a step it serves: only its own endpoint of the gateway is refused.
        yield warning(
            "name-illegal",
            name,
            "cannot be part of a URL unescaped, so the gateway has no endpoint for it",
            "use letters, digits, '.', '_' and '-', beginning with a letter or a digit",
        )
    elif name in RESERVED_NAMES:
        yield warning(
            "name-reserved",
            name,
            "is the name of one of the gateway's own endpoints, so the model has no endpoint",
            "give the folder another name",
        )


def _config(model: Model) -> Iterator[Finding]:
    config = model.config
    if model.written is None:
        if model.backend:
            yield info(
                "config-missing",
                model.location,
                "does not exist: Triton guesses the config",
                "write one, so that tensors and batching are what you intend",
            )
        return
    if config.name and config.name != model.name:
        yield error(
            "name-differs",
            model.location,
            f"says name {config.name!r}, but its folder is called {model.name!r}",
            f"leave the name out, or write name: {model.name!r}",
        )
    for path in sorted(model.folder.glob("configs/*.pbtxt")):
        yield from _profile(model, path)


def _profile(model: Model, path: Path) -> Iterator[Finding]:
    try:
        parse(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        location = f"{model.name}/configs/{path.name}"
        yield error("config-broken", location, str(fault), "correct that line of the file")


def _versions(model: Model) -> Iterator[Finding]:
    if not model.versions:
        yield error(
            "version-missing",
            model.name,
            "has no version folder, and Triton serves nothing without one",
            "add 1/"
            + (" with a .gitkeep: git does not keep empty folders" if model.is_ensemble else ""),
        )
    elif not model.served:
        yield error(
            "version-missing",
            model.location,
            "its version_policy serves none of its versions",
            f"name one of {', '.join(map(str, model.versions))}, or remove version_policy",
        )
    for version in model.config.version_policy.specific.versions:
        if version not in model.versions and model.served:
            yield warning(
                "version-missing",
                model.location,
                f"its version_policy names {version}, but there is no folder {version}/: Triton "
                "serves the others",
                f"name {', '.join(map(str, model.versions))}, or add the folder",
            )
    yield from _phantoms(model)
    for version in model.served:
        yield from _model_file(model, version)


def _phantoms(model: Model) -> Iterator[Finding]:
    """Folders that Triton takes for a version, and then looks for under the number alone."""
    for version, names in model.claims.items():
        if version > _LARGEST_VERSION:
            yield error(
                "version-phantom",
                f"{model.name}/{names[0]}",
                "is a number beyond 64 bits, and Triton crashes when it reads that",
                "use a smaller number",
            )
        if str(version) not in names:
            yield error(
                "version-phantom",
                f"{model.name}/{names[0]}",
                f"is version {version} to Triton, which then looks into {version}/ and finds "
                "nothing",
                f"move it out of {model.name}/, or give it a name that starts with a letter",
            )


def _model_file(model: Model, version: int) -> Iterator[Finding]:
    folder, name = model.folder / str(version), model.model_file
    if not name or model.is_ensemble:
        return
    location = f"{model.name}/{version}"
    if not (folder / name).exists():
        if model.backend not in _LOOKS_IN_VERSION or model.config.cc_model_filenames:
            return
        contents = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        yield error(
            "file-missing",
            location,
            f"backend {model.backend or 'of the config'} looks for {name}, but there is {contents}",
            f"put {name} there, or name the file in default_model_filename",
        )
    elif (folder / name).is_file() and _starts_with(folder / name, _LFS):
        yield error(
            "file-is-pointer",
            f"{location}/{name}",
            "is a Git LFS pointer, not the model",
            "run git lfs pull",
        )


def _beside(model: Model) -> Iterator[Finding]:
    for path in (model.folder / name for name in model.entries):
        if path.is_symlink() and not path.exists():
            yield error(
                "link-broken",
                f"{model.name}/{path.name}",
                f"is a link to {path.readlink()}, which does not exist, and Triton refuses a model "
                "with such a link",
                "delete it, or restore what it links to",
            )
        elif _ALMOST_A_VERSION.match(path.name) and path.is_dir():
            yield warning(
                "version-ignored",
                f"{model.name}/{path.name}",
                "looks like a version, but Triton ignores it: a version is a number without a "
                "leading zero",
                f"rename it to {re.sub(r'[^0-9].*', '', path.name.lstrip('vV0')) or '1'}",
            )
        elif _STRAY.match(path.name):
            yield warning(
                "stray-file",
                f"{model.name}/{path.name}",
                "is beside the config: when it appears, changes or disappears, Triton reloads "
                "every version of the model",
                "delete it",
            )
    yield from _labels(model)


def _labels(model: Model) -> Iterator[Finding]:
    labelled = [output.name for output in model.config.output if output.label_filename]
    for name in sorted({name for name in labelled if labelled.count(name) > 1}):
        yield error(
            "labels-missing",
            f"{model.location}:{name}",
            "is declared twice with a label_filename",
            "declare it once",
        )
    for output in model.config.output:
        if output.label_filename and not (model.folder / output.label_filename).is_file():
            yield error(
                "labels-missing",
                f"{model.location}:{output.name}",
                f"names label_filename {output.label_filename!r}, which does not exist",
                f"put it into {model.name}/, beside the config",
            )


def _manifest(model: Model) -> Iterator[Finding]:
    repository = ModelRepository(model.folder.parent)
    for version in model.served:
        try:
            if manifest := repository.manifest(model.name, version):
                repository.verify(manifest)
        except Tampered as tampered:
            yield error(
                "tampered",
                tampered.file,
                str(tampered),
                f"publish {model.name} again, or roll back: tidegate rollback {model.name}",
            )


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start
