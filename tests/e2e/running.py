"""Running suites in processes of their own, as a user does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Suite:
    """A suite run into one folder."""

    name: str
    runs: Path
    data: Path

    def command(self, verb: str = "run") -> list[str]:
        return [verb, self.name, "--runs", str(self.runs), "--data", str(self.data)]

    def launch(
        self, verb: str = "run", *options: str, timeout: float = 900
    ) -> subprocess.CompletedProcess:
        return python(["-m", "launch", *self.command(verb), *options], timeout)

    def killed_at(self, kind: str, event: str, count: int = 1) -> subprocess.CompletedProcess:
        arguments = ["tests/e2e/die.py", kind, event, str(count), "--", *self.command()]
        return python(arguments, timeout=600)

    def results(self) -> list[dict]:
        """Cells of the report that have a number."""
        report = json.loads((self.runs / "reports" / self.name / "results.json").read_text())
        return report["results"]

    def table(self) -> str:
        return (self.runs / "reports" / self.name / "table.md").read_text()


def python(arguments: list[str], timeout: float) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def make_scenes(folder: Path, *options: str) -> Path:
    done = python(["-m", "sslbench.scenes", "--out", str(folder), *options], timeout=300)
    assert done.returncode == 0, done.stderr
    return folder
