"""Suite files: strict keys, paths relative to the file, names that can be found."""

import pytest

from launch.suite import load_suite, with_overrides
from sslbench.config import ConfigError


def test_paths_are_relative_to_the_suite_file(suite, suite_path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert suite.row[0].pretrain == suite_path.with_name("pretrain.toml")
    assert suite.task[0].config == suite_path.with_name("voc_det.toml")


def test_an_anchor_lies_beside_the_suite_file_too(suite_path):
    text = suite_path.read_text().replace("random = {", 'rescale_to = "sgd.pth"\nrandom = {')
    suite_path.write_text(text)
    assert load_suite(str(suite_path)).row[1].rescale_to == suite_path.with_name("sgd.pth")


def test_an_unknown_key_is_refused_with_a_suggestion(suite_path):
    suite_path.write_text(suite_path.read_text().replace('metrics = ["mAP"]', 'metric = ["mAP"]'))
    with pytest.raises(ConfigError, match=r"metric'; did you mean '.*metrics'"):
        load_suite(str(suite_path))


@pytest.mark.parametrize("name", ['method = "Random init."', 'id = "voc_det"'])
def test_rows_and_tasks_have_names_of_their_own(suite_path, name):
    key = name.partition(" ")[0]
    text = suite_path.read_text()
    first = next(line for line in text.splitlines() if line.startswith(f"{key} =") and line != name)
    suite_path.write_text(text.replace(first, name))
    with pytest.raises(ConfigError, match="named twice"):
        load_suite(str(suite_path))


def test_an_unknown_suite_name_is_answered_with_the_known_ones(monkeypatch, suite_path):
    monkeypatch.setattr("launch.suite.SUITES_DIR", suite_path.parent)
    with pytest.raises(ConfigError, match="did you mean 'suite'"):
        load_suite("suit")


def test_dotted_and_nested_changes_are_laid_over_each_other(suite):
    row = suite.row[0].model_validate(
        {"method": "m", "pretrain": "p.toml", "set": {"a.b": 1, "a.c": 2}}
    )
    changed = with_overrides(suite.model_copy(update={"row": (row,)}), ["a.b=3"])
    assert changed.row[0].set == {"a": {"b": 3, "c": 2}}


def test_overrides_of_a_suite_that_pretrains_nothing_are_refused(suite):
    with pytest.raises(ConfigError, match=r"no row .* is pretrained"):
        with_overrides(suite.model_copy(update={"row": suite.row[1:]}), ["epochs=3"])
