"""Files and folders: what is missing, what is in the way."""

import re
from collections.abc import Iterator
from pathlib import Path

from modelspec.layout import CONFIG_FILE, MODEL_NAME, RESERVED_NAMES
from modelspec.pbtxt import parse
from serving import manifest
from serving.errors import Tampered
from serving.lint.finding import Finding, error, info, warning
from serving.lint.reading import DEFAULT_FILES, Model
from serving.repository import CANDIDATE_SUFFIX

# Editors, systems and tools leave these, and Triton takes each for a change of the model.
_STRAY = re.compile(
    r"(.*\.sw[a-p]|.*~|\.DS_Store|\.ipynb_checkpoints|__pycache__|.*\.tmp|.*\.bak)\Z"
)
_ALMOST_A_VERSION = re.compile(r"(v\d+|0\d*|\d+\.\d+)\Z", re.IGNORECASE)
_LFS = b"version https://git-lfs.github.com"


def check(model: Model) -> Iterator[Finding]:
    yield from _folder(model)
    if model.fault:
        yield error("config-broken", model.place, model.fault, "correct that line of the file")
        return
    if not _is_stray(model):
        yield from _config(model)
        yield from _versions(model)
        yield from _beside(model)
        yield from _manifest(model)


def _is_stray(model: Model) -> bool:
    return not model.versions and not (model.folder / CONFIG_FILE).is_file()


def _folder(model: Model) -> Iterator[Finding]:
    name = model.name
    if name.endswith(CANDIDATE_SUFFIX):
        yield warning(
            "candidate-left", name, "a publisher that was killed left it", "tidegate up clears it"
        )
    elif _is_stray(model):
        yield warning(
            "stray-folder",
            name,
            "has neither a config nor a version folder; to Triton every sub-folder is a model, and "
            "it reports this one as broken",
            "move it out of the repository",
        )
    elif not MODEL_NAME.match(name) or ".." in name:
        yield error(
            "name-illegal",
            name,
            "cannot be a part of a URL as it is",
            "use letters, digits, '.', '_' and '-', beginning with a letter or a digit",
        )
    elif name in RESERVED_NAMES:
        yield warning(
            "name-reserved",
            name,
            "is the name of one of the gateway's own endpoints, so it has no endpoint of its own",
            "give the folder another name",
        )


def _config(model: Model) -> Iterator[Finding]:
    config = model.config
    if model.written is None:
        known = any((model.folder / str(v) / f).exists() for v in model.versions for f in _FILES)
        say = info if known else error
        yield say(
            "config-missing",
            model.place,
            "there is none: " + ("Triton guesses it" if known else "and no file to guess it from"),
            "write one, so that tensors and batching are what you mean",
        )
        return
    if config.name and config.name != model.name:
        yield error(
            "name-differs",
            model.place,
            f"says name {config.name!r}, and its folder is called {model.name!r}",
            f"leave the name out, or write name: {model.name!r}",
        )
    for path in sorted(model.folder.glob("configs/*.pbtxt")):
        yield from _variant(model, path)


def _variant(model: Model, path: Path) -> Iterator[Finding]:
    try:
        parse(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        place = f"{model.name}/configs/{path.name}"
        yield error("config-broken", place, str(broken), "correct that line of the file")


def _versions(model: Model) -> Iterator[Finding]:
    if not model.versions:
        yield error(
            "version-missing",
            model.name,
            "has no version folder, and Triton serves nothing without one",
            "add 1/" + (" with a .gitkeep: git keeps no empty folder" if model.is_ensemble else ""),
        )
    wanted = model.config.version_policy.specific.versions
    for version in wanted:
        if version not in model.versions and model.versions:
            yield error(
                "version-missing",
                model.place,
                f"its version_policy names {version}, and there is no folder {version}/",
                f"name one of {', '.join(map(str, model.versions))}",
            )
    for version in model.served:
        yield from _model_file(model, version)


def _model_file(model: Model, version: int) -> Iterator[Finding]:
    folder, name = model.folder / str(version), model.model_file
    if not name or model.is_ensemble:
        return
    place = f"{model.name}/{version}"
    if not (folder / name).exists():
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        yield error(
            "file-missing",
            place,
            f"backend {model.backend or 'of the config'} looks for {name}, and there is {there}",
            f"put {name} there, or name the file in default_model_filename",
        )
    elif (folder / name).is_file() and _starts_with(folder / name, _LFS):
        yield error(
            "file-is-pointer",
            f"{place}/{name}",
            "is a Git LFS pointer, not the model",
            "git lfs pull",
        )


def _beside(model: Model) -> Iterator[Finding]:
    for path in sorted(model.folder.iterdir()):
        if _ALMOST_A_VERSION.match(path.name) and path.is_dir():
            yield warning(
                "version-ignored",
                f"{model.name}/{path.name}",
                "looks like a version, and Triton ignores it: a version is a number without a "
                "leading zero",
                f"rename it to {re.sub(r'[^0-9].*', '', path.name.lstrip('vV0')) or '1'}",
            )
        elif _STRAY.match(path.name):
            yield warning(
                "stray-file",
                f"{model.name}/{path.name}",
                "lies beside the config: when it appears, changes or goes, Triton reloads every "
                "version of the model",
                "delete it",
            )
    for output in model.config.output:
        if output.label_filename and not (model.folder / output.label_filename).is_file():
            yield error(
                "labels-missing",
                f"{model.place}:{output.name}",
                f"names label_filename {output.label_filename!r}, which is not there",
                f"put it into {model.name}/, beside the config",
            )


def _manifest(model: Model) -> Iterator[Finding]:
    for version in model.served:
        try:
            found = manifest.read(model.folder.parent, model.name, version)
            if found:
                manifest.verify(model.folder.parent, found)
        except Tampered as tampered:
            yield error(
                "tampered",
                tampered.file,
                str(tampered),
                f"publish {model.name} again, or go back: tidegate rollback {model.name}",
            )


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


_FILES = tuple(DEFAULT_FILES.values())
