"""The README's commands exist and its tree is the disk's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.config import PretrainConfig
from sslbench.config import load

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"`((?:make|\.venv/bin/python) [^`]+)`", README) + [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()
]


def test_the_readme_names_the_two_commands_first():
    assert (
        COMMANDS and re.findall(r"```bash\n(.*?)```", README, re.S)[0] == "make demo\nmake test\n"
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_commands_name_real_targets(command):
    arguments = [part for part in command.split()[1:] if part != "..."]
    variables = set(re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for argument in re.findall(r"\b([A-Z]+)=", command):
        assert argument in variables, argument
    dry = subprocess.run(
        ["make", "-n", arguments[0]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert dry.returncode == 0, dry.stderr


def test_overrides_in_the_readme_fit_the_paper_config():
    overrides = [o for group in re.findall(r'SET="([^"]+)"', README) for o in group.split()]
    assert overrides
    load(PretrainConfig, ROOT / "configs/pretrain/cyborgs.toml", overrides)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(".venv")])
def test_python_commands_name_real_modules_configs_and_options(command):
    words = command.split()
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).exists(), word
    module = words[words.index("-m") + 1]
    verb = [w for w in words[words.index("-m") + 2 :][:1] if re.fullmatch("[a-z]+", w)]
    shown = subprocess.run(
        [sys.executable, "-m", module, *verb, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout
    for option in re.findall(r"--[a-z-]+", command):
        assert option in shown, option


def test_the_tree_is_the_one_on_disk():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.S).group(1)
    for line in tree.splitlines():
        names = line.split() if line.startswith("Makefile") else [line.split()[0]]
        for name in names:
            assert (ROOT / name).exists(), name
    folders = set(re.findall(r"^(\w+)/ ", tree, re.MULTILINE))
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        tracked = {name.split("/")[0] for name in done.stdout.split() if "/" in name}
        assert {name for name in tracked if not name.startswith(".")} == folders
