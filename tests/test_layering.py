"""Who may import whom. Siblings meet only through files on disk; planning loads no torch."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "sslbench": set(),
    "pretrain": {"sslbench"},
    "transfer": {"sslbench"},
    "eval_svm": {"sslbench"},
    "launch": {"sslbench"},
}
TORCH_FREE = [
    "sslbench.config",
    "sslbench.stage",
    "sslbench.datasets",
    "sslbench.results",
    "pretrain.config",
    "pretrain.schedule",
    "pretrain.stage",
    "transfer.task",
    "transfer.convert",
    "transfer.detection",
    "eval_svm.stage",
    "launch.graph",
    "launch.__main__",
]


def imported_packages(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_what_it_may(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        extra = (imported_packages(file) & set(MAY_IMPORT)) - MAY_IMPORT[package] - {package}
        assert not extra, f"{file.relative_to(ROOT)} imports {sorted(extra)}"


def deferred_imports(file: Path) -> set[tuple[str, str]]:
    """(module, name) of the imports of our own within functions and type checks."""
    return {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.col_offset
        for alias in node.names
        if node.module.split(".")[0] in MAY_IMPORT
    }


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_what_a_function_imports_is_there(package):
    for file in (ROOT / package).rglob("*.py"):
        for module, name in deferred_imports(file):
            owner = importlib.import_module(module)
            is_there = hasattr(owner, name) or (
                hasattr(owner, "__path__") and importlib.util.find_spec(f"{module}.{name}")
            )
            assert is_there, f"{file.relative_to(ROOT)} imports {name} of {module}"


def test_launch_names_no_torch_at_all():
    for file in (ROOT / "launch").rglob("*.py"):
        assert not imported_packages(file) & {"torch", "torchvision", "detectron2"}, file


@pytest.mark.parametrize("package", ["sslbench", "pretrain"])
def test_detectron2_names_stay_in_transfer(package):
    for file in (ROOT / package).rglob("*.py"):
        assert "detectron2" not in imported_packages(file), file


def test_planning_modules_import_no_torch():
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code, *TORCH_FREE], cwd=ROOT, check=True)
