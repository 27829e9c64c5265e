"""A stage's version and defaults, recorded: who changes one on purpose bumps the version.

Fingerprints hash departures from the defaults, so a changed default would leave old numbers valid.
After a bump: ``python -m tests.test_defaults`` writes the record anew.
"""

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from launch.graph import REFS
from sslbench.catalog import resolve

RECORD = Path(__file__).with_name("defaults.json")


def defaults(config_type: type[BaseModel]) -> dict:
    found = {}
    for name, field in config_type.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if value is PydanticUndefined:
            found[name] = "required"
        else:
            found[name] = (
                json.loads(value.model_dump_json()) if isinstance(value, BaseModel) else value
            )
    return found


def current() -> dict:
    stages = {ref: resolve(ref) for ref in sorted(REFS.values())}
    return {
        ref: {"version": stage.version, "defaults": defaults(stage.config_type)}
        for ref, stage in stages.items()
    }


def test_a_changed_default_comes_with_a_new_version():
    recorded, now = json.loads(RECORD.read_text()), json.loads(json.dumps(current()))
    for ref, stage in now.items():
        assert ref in recorded, f"{ref} is new: run python -m tests.test_defaults"
        before = recorded[ref]
        changed = {
            key
            for key, value in before["defaults"].items()
            if stage["defaults"].get(key, value) != value
        }
        assert not changed or stage["version"] > before["version"], (
            f"{ref}: defaults of {sorted(changed)} changed; bump its version, "
            "then run python -m tests.test_defaults"
        )
        assert stage == before, f"{ref} changed: run python -m tests.test_defaults"


if __name__ == "__main__":
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
