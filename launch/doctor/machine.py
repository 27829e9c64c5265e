"""What this machine runs on: versions, the detection engine, a GPU. Imports no torch."""

import importlib.machinery
import shutil
import subprocess
from pathlib import Path

from sslbench.installed import package_folder
from sslbench.stage import versions

SECONDS = 10  # that a hanging driver may take


def machine_lines() -> list[str]:
    """Lines for people."""
    found = "  ".join(f"{name} {version}" for name, version in versions().items())
    return [f"versions  {found}", f"engine    {_engine()}", f"GPU       {_gpu()}"]


def _engine() -> str:
    """Which engine a task with ``engine = "auto"`` takes."""
    if package_folder("torchvision") is None:
        return "none: torchvision is not installed"
    folder = package_folder("detectron2")
    if folder is None:
        return "torchvision; Detectron2 is not installed (engine=detectron2 needs it)"
    if not _has_compiled_part(folder):
        return (
            f"detectron2, but {folder} lacks its compiled part _C: "
            "reinstall it for this torch, or set engine=torchvision"
        )
    return "detectron2; engine=torchvision is another stage with numbers of its own"


def _has_compiled_part(folder: Path) -> bool:
    return any(
        (folder / f"_C{suffix}").exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES
    )


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found (there is no nvidia-smi)"
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return "none that nvidia-smi can reach"
    return "; ".join(done.stdout.split("\n")).strip("; ") or "none"
