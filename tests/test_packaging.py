"""pyproject.toml, environment.yml, constraints.txt and the Makefile tell one story."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# conda's name -> pip's name, where they differ
CONDA_TO_PIP = {
    "pytorch": "torch",
    "faiss-gpu": "faiss-cpu",
    "py-opencv": "opencv-contrib-python-headless",  # conda's has the contrib modules
}
CONDA_ONLY = {"python", "pip", "detectron2"}


def split(requirement: str) -> tuple[str, str]:
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+?)\s*([<>=!~].*)?", requirement).groups()
    return name, (bounds or "").replace(" ", "")


def pip_requirements() -> dict[str, str]:
    project = PROJECT["project"]
    groups = project["optional-dependencies"]
    extras = [item for name, group in groups.items() if name != "packages" for item in group]
    alone = re.findall(r"--no-deps '(.+)'", (ROOT / ".ci/setup").read_text())
    return dict(split(item) for item in [*project["dependencies"], *extras, *alone])


def conda_requirements() -> dict[str, str]:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    flat = [r for item in listed for r in (item["pip"] if isinstance(item, dict) else [item])]
    pairs = dict(split(item) for item in flat)
    return {CONDA_TO_PIP.get(n, n): b for n, b in pairs.items() if n not in CONDA_ONLY}


def test_conda_and_pip_users_get_the_same_packages_and_bounds():
    assert conda_requirements() == pip_requirements()


def test_conda_users_get_detectron2_and_the_python_we_support():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "detectron2" in listed
    assert "python" + PROJECT["project"]["requires-python"] in listed


def test_constraints_pin_the_tested_pair_inside_the_bounds():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(split(line) for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "==2.14.1"
    assert pins["torchvision"] == "==0.29.1"
    assert pins["setuptools"] == "<82"


def test_every_package_is_shipped():
    from setuptools import find_packages

    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    shipped = set(find_packages(str(ROOT), include=include))
    on_disk = {
        str(init.parent.relative_to(ROOT)).replace("/", ".")
        for package in ("sslbench", "pretrain", "transfer", "eval_svm", "launch")
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert shipped == on_disk
    folders = {p.parent for name in on_disk for p in (ROOT / name.split(".")[0]).rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_make_help_lists_every_target_with_one_line():
    rules = re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"demo", "test", "pretrain", "transfer-all"} <= set(rules)
    for target in rules:
        assert re.search(rf"^  {target} +\S", listed, re.MULTILINE), target


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split()]


def test_no_weights_images_or_machine_paths_are_committed():
    for path in tracked_files():
        assert path.suffix not in {".pt", ".pth", ".pkl", ".npy", ".jpg", ".tar"}, path
        if path.suffix in {".py", ".toml", ".yaml", ".md", ".txt"} and path.exists():
            text = path.read_text()
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work)/\w", text), path
