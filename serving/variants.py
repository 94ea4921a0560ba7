"""A member's hardware variants, ``configs/NAME.pbtxt``: published with its version."""

from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIGS
from modelspec.pbtxt import parse
from serving.files import place
from serving.pins import as_bytes, listed_versions, with_versions


def place_variants(repository: Path, config: ModelConfig, staged: Path) -> None:
    """Bring the variants that ``staged``, a model's folder, has, under the name and with the
    versions of ``config``, the model's own: whichever Triton is started with, it serves the same
    versions."""
    for path in sorted((staged / CONFIGS).glob("*.pbtxt")):
        variant = with_versions(parse(path.read_text("utf-8")), listed_versions(config))
        variant.name = config.name
        folder = repository / config.name / CONFIGS
        folder.mkdir(exist_ok=True)
        place(repository, folder / path.name, as_bytes(variant))
