"""Nothing is registered on import: data sets are read by call, heads and sets enter no catalog."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("transfer", "sslbench")
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "__main__"
)
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
AFTERWARDS = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
from transfer.engines import detectron2 as engine
assert engine.EXTRA_NORM_HEAD not in ROI_HEADS_REGISTRY
engine.register_extra_norm_head()
assert engine.EXTRA_NORM_HEAD in ROI_HEADS_REGISTRY
from sslbench.datasets import DataRoots
from pathlib import Path
from transfer.detection import read_data
from transfer.task import load_task
train, test = read_data(load_task("voc_det_twin"), DataRoots(Path(sys.argv[-1])))
engine.dataset_dict(train.records[0])
assert before == (set(DatasetCatalog.list()), set(MetadataCatalog.list()))
"""


def run(code: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_module_imports_detectron2_or_registers_anything():
    run(IMPORT_ALL + "assert 'detectron2' not in sys.modules", *MODULES)


@pytest.mark.d2
def test_the_detectron2_engine_registers_its_head_when_called_and_no_data_set_ever(scenes):
    run("import sys\n" + AFTERWARDS, str(scenes.root))
