"""The configs beside a model's main one: ``configs/NAME.pbtxt``, which a Triton started with
``--model-config-name=NAME`` reads *instead of* ``config.pbtxt``.

What serves stands in the main config: the versions, the pins, face and golden sample. A variant
says only how. So whoever places a main config lets the variants follow, else a Triton that reads
them would serve an old version.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIG_FILE, CONFIGS
from modelspec.pbtxt import parse
from serving.files import place
from serving.pins import TUNED_PARAMETER, as_bytes, is_ensemble
from serving.repository import model_folders, read_config

TUNED = "tuned"
# Parameters with this prefix are about the model, not about how it is run.
OURS = "tidegate."


def variant_path(repository: Path, model: str, name: str) -> Path:
    return repository / model / CONFIGS / f"{name}.pbtxt"


def variant_names(repository: Path) -> dict[str, list[str]]:
    """The models that have each variant, by its name."""
    found: dict[str, list[str]] = {}
    for folder in model_folders(repository):
        for path in variant_files(folder):
            found.setdefault(path.stem, []).append(folder.name)
    return found


def variant_files(folder: Path) -> list[Path]:
    """The variants in a model's folder."""
    return sorted((folder / CONFIGS).glob("*.pbtxt"))


def read_variants(folder: Path) -> dict[str, ModelConfig]:
    """Those that parse, by name; the linter reports the others, and Triton refuses them."""
    found = {}
    for path in variant_files(folder):
        try:
            found[path.stem] = parse(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
    return found


def followed(main: ModelConfig, variant: ModelConfig) -> ModelConfig:
    """The variant brought into step with the main config: same versions and pins, same face and
    golden sample, and no larger batch than was proved."""
    own = ModelConfig()
    own.CopyFrom(main if is_ensemble(main) else variant)
    own.name = main.name
    own.version_policy.CopyFrom(main.version_policy)
    if not main.HasField("version_policy"):
        own.ClearField("version_policy")
    own.max_batch_size = min(main.max_batch_size, variant.max_batch_size)
    for key in [key for key in own.parameters if key.startswith(OURS)]:
        del own.parameters[key]
    for key, value in main.parameters.items():
        if key.startswith(OURS) and key != TUNED_PARAMETER:
            own.parameters[key].CopyFrom(value)
    if TUNED_PARAMETER in variant.parameters:
        own.parameters[TUNED_PARAMETER].CopyFrom(variant.parameters[TUNED_PARAMETER])
    return own


def place_config(repository: Path, model: str, config: ModelConfig) -> None:
    """Place the model's main config by one rename, then let its variants follow. Cut off between
    the two, ``follow_all`` makes up for it before anything else is done."""
    place(repository, repository / model / CONFIG_FILE, as_bytes(config))
    follow(repository, model)


def follow(repository: Path, model: str) -> None:
    """Bring the model's variants into step with its main config; equal ones are not touched."""
    folder = repository / model
    variants = read_variants(folder)
    if not variants or not (folder / CONFIG_FILE).is_file():
        return
    main = read_config(repository, model)
    for name, variant in variants.items():
        place_variant(repository, model, name, followed(main, variant))


def follow_all(repository: Path) -> None:
    for folder in model_folders(repository):
        if (folder / CONFIGS).is_dir():
            follow(repository, folder.name)


def place_variant(repository: Path, model: str, name: str, config: ModelConfig) -> None:
    """Place one variant by one rename. One that says the same is left alone: Triton reloads a
    model for a file that has changed."""
    path = variant_path(repository, model, name)
    if path.is_file() and read_variants(path.parent.parent).get(name) == config:
        return
    path.parent.mkdir(exist_ok=True)
    place(repository, path, as_bytes(config))


def take_variant(repository: Path, model: str, name: str) -> None:
    """Take a variant away, and the folder with the last one."""
    path = variant_path(repository, model, name)
    if not path.is_file():
        return
    path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def copy_variants(folder: Path, target: Path, main: ModelConfig) -> None:
    """Write the variants of ``folder`` under ``target``, in step with ``main``: for the same
    pipeline under another name."""
    for name, variant in read_variants(folder).items():
        (target / CONFIGS).mkdir(exist_ok=True)
        path = target / CONFIGS / f"{name}.pbtxt"
        path.write_bytes(as_bytes(followed(main, variant)))


def variants_now(repository: Path, models: Iterable[str]) -> dict[str, str]:
    """The variants' texts, by their path in the repository."""
    return {
        path.relative_to(repository).as_posix(): path.read_text(encoding="utf-8")
        for model in models
        for path in variant_files(repository / model)
    }


def put_back(repository: Path, models: Iterable[str], texts: Mapping[str, str]) -> None:
    """Let the models have just these variants again."""
    for model in models:
        for path in variant_files(repository / model):
            if path.relative_to(repository).as_posix() not in texts:
                take_variant(repository, model, path.stem)
    for name, text in texts.items():
        if (repository / name).parent.parent.is_dir():
            (repository / name).parent.mkdir(exist_ok=True)
            place(repository, repository / name, text.encode())
