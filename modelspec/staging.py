"""Write a model's folder as Triton expects it: ``config.pbtxt``, its config profiles for other
hardware, and one version folder."""

import py_compile
import shutil
from collections.abc import Mapping
from pathlib import Path

from modelspec.hardware import TENSORRT, hardware_configs, plan_config
from modelspec.layout import CONFIG_FILE, CONFIGS, PLAN_FILE, STEP_FILE
from modelspec.model import ModelSpec
from modelspec.pbtxt import render, to_proto

# An ensemble has no files of its own, but Triton wants a version folder all the same.
KEEP = ".gitkeep"


def stage_model(
    repository: Path, spec: ModelSpec, files: Mapping[str, Path], version: int = 1
) -> Path:
    """Write ``repository/NAME`` and return its path. ``files`` maps a name in the version folder to
    the file to copy there."""
    folder = repository / spec.name
    version_folder = folder / str(version)
    version_folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(render(to_proto(spec)), encoding="utf-8")
    _write_config_profiles(folder, spec, has_plan=PLAN_FILE in files)
    for name, source in files.items():
        shutil.copyfile(source, version_folder / name)
    if STEP_FILE in files:
        # Triton's stub would write the .pyc at the first load, whatever PYTHONDONTWRITEBYTECODE
        # says, and Triton reloads a model whose version folder has changed.
        # By hash, not by time: the same source gives the same bytes, and a copy stays valid.
        py_compile.compile(
            str(version_folder / STEP_FILE),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH,
        )
    if not files:
        (version_folder / KEEP).touch()
    return folder


def _write_config_profiles(folder: Path, spec: ModelSpec, has_plan: bool) -> None:
    profiles = hardware_configs(spec)
    if has_plan:
        profiles[TENSORRT] = plan_config(spec)
    for name, proto in profiles.items():
        (folder / CONFIGS).mkdir(exist_ok=True)
        (folder / CONFIGS / f"{name}.pbtxt").write_text(render(proto), encoding="utf-8")
