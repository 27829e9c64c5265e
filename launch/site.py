"""A site file: this machine's device, workers, data and run folder. Recorded, never hashed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sslbench.config import CONFIGS_DIR, FrozenConfig, load

if TYPE_CHECKING:
    from launch.suite import DataDefaults
    from sslbench.datasets import DataRoots

LOCAL_SITE = CONFIGS_DIR / "site" / "local.toml"


class DataSite(FrozenConfig):
    """Where the data sets lie; ``overrides`` gives single ones a folder: ``voc2007 = "/x"``."""

    root: Path | None = None  # None: DETECTRON2_DATASETS where it is set, else "data"
    overrides: dict[str, Path] = {}  # noqa: RUF012 (frozen, pydantic copies it)


class SiteConfig(FrozenConfig):
    """What a machine is like. No key may change a number of a table."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    num_workers: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0)  # 0: all cores that this process may use
    runs: Path = Path("runs")
    data: DataSite = DataSite()


def load_site(path: Path | None) -> SiteConfig:
    """Read a site file, by default ``configs/site/local.toml``."""
    return load(SiteConfig, path or LOCAL_SITE)


def data_roots(suite: "DataDefaults", site: SiteConfig, given: Sequence[str] = ()) -> "DataRoots":
    """Say where the data lie: what the user gave, else the suite's own data, else the site's.

    A suite on built-in data names its root: a site for real data must not swap it by accident. A
    site that names no root leaves it to DETECTRON2_DATASETS.
    """
    from sslbench.datasets import DataRoots

    if suite.root is not None:
        known = DataRoots(suite.root, suite.overrides, "the suite")
        return DataRoots.given(given, otherwise=known)
    overrides = {**site.data.overrides, **suite.overrides}
    own = {name: path.expanduser().resolve() for name, path in overrides.items()}
    base = DataRoots.of_environment()
    if site.data.root is not None:
        base = DataRoots(site.data.root.expanduser().resolve(), source="the site file")
    return DataRoots.given(given, otherwise=DataRoots(base.root, own, base.source))
