"""Shared fixtures, and the rule that a test whose need is missing skips with a printed reason."""

import os
import shutil
from pathlib import Path

import pytest

from transfer.task import has_detectron2

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("SSLBENCH_SHARED_DATA", ROOT.parent / "shared" / "data"))


def _missing(marker: str) -> str | None:
    """Say what a marker's tests lack here, if anything."""
    if marker == "d2" and not has_detectron2():
        return "Detectron2 is not installed"
    if marker == "slurm" and shutil.which("slurmctld") is None:
        return "slurmctld is not installed"
    if marker == "browser" and shutil.which("chromium") is None:
        return "Chromium is not installed"
    if marker == "gpu":
        import torch

        return None if torch.cuda.is_available() else "no GPU"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here; ``SSLBENCH_REQUIRE_D2=1`` refuses to skip for Detectron2."""
    for marker in ("d2", "slurm", "browser", "gpu"):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = _missing(marker) if marked else None
        if reason is None:
            continue
        if marker == "d2" and os.environ.get("SSLBENCH_REQUIRE_D2"):
            raise pytest.UsageError(f"{reason}, and SSLBENCH_REQUIRE_D2 is set")
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of small real data sets; tests that want it skip where it is not."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA} (set SSLBENCH_SHARED_DATA)")
    return REAL_DATA
