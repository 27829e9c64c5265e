"""A few built-in scenes for the detection tests."""

from pathlib import Path

import pytest

from sslbench.datasets import DataRoots
from sslbench.scenes.generate import SceneSettings, generate


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> DataRoots:
    """Eight training and four test pictures in every layout."""
    root: Path = tmp_path_factory.mktemp("scenes") / "data"
    generate(root, SceneSettings(num_train=8, num_test=4))
    return DataRoots(root)
