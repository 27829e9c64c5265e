"""The graph of a suite: what is shared, what is asked for, and what makes a stage another one."""

import dataclasses
from pathlib import Path

import pytest

from launch.graph import FromFile, plan, select
from launch.suite import Row, load_suite, with_checkpoint, with_overrides
from sslbench.config import ConfigError
from tests.launch import fakes


def kinds(stages):
    return [stage.kind for stage in stages]


def names(stages):
    return {stage.name for stage in stages}


def test_every_stage_comes_after_those_it_needs(suite, roots, tmp_path):
    seen = set()
    for stage in plan(suite, roots, tmp_path / "runs"):
        assert set(stage.parents) <= seen
        seen.add(stage.name)


def test_two_tasks_of_one_layout_share_one_conversion(suite_path, roots, tmp_path):
    config = suite_path.with_name("coco_fpn.toml")
    config.write_text(config.read_text().replace('layout = "fpn"', 'layout = "c4"'))
    stages = plan(load_suite(str(suite_path)), roots, tmp_path)
    per_row = [s for s in stages if s.kind == "convert"]
    assert len(per_row) == 2  # one for each backbone
    assert {cell.task for cell in per_row[0].serves} == {"voc_det", "coco_fpn"}


def test_masks_are_judged_only_where_a_run_made_some(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path)
    judged = [cell.row for s in stages for cell in s.answers if cell.task == "mask_quality"]
    assert judged == ["Ours & <co>"]


def test_svm_reads_the_checkpoint_itself(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path)
    svm = next(s for s in stages if s.answers and s.answers[0].task == "voc07_svm")
    assert set(svm.upstream) == {"checkpoint"}
    assert svm.upstream["checkpoint"].artifact == "checkpoint"


def test_another_place_on_disk_changes_no_fingerprint(suite, suite_path, roots, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    suite_path.parent.rename(elsewhere)
    moved = load_suite(str(elsewhere / "suite.toml"))
    before = {s.name for s in plan(moved, roots, tmp_path / "runs")}
    other_roots = dataclasses.replace(roots, root=tmp_path / "other")
    assert {s.name for s in plan(moved, other_roots, tmp_path / "runs2")} == before


def test_another_engine_is_another_stage(suite, roots, tmp_path, monkeypatch):
    before = names(plan(suite, roots, tmp_path))
    monkeypatch.setattr(fakes.Engine, "installed", "detectron2")
    after = names(plan(suite, roots, tmp_path))
    assert {n.partition("/")[0] for n in before ^ after} == {"transfer"}


def test_other_images_under_the_same_name_make_everything_new(suite, roots, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"one picture")
    changed = with_overrides(suite, [f"images={folder}"])
    before = names(plan(changed, roots, tmp_path))
    assert names(plan(changed, roots, tmp_path)) == before
    (folder / "b.jpg").write_bytes(b"another picture")
    after = names(plan(changed, roots, tmp_path))
    controls = {n for n in before & after}
    assert {n for n in before - after if n.startswith("pretrain/")}
    assert all(
        {c.row for c in s.serves} == {"Random init."}
        for s in plan(changed, roots, tmp_path)
        if s.name in controls
    )


def test_a_new_file_under_the_same_checkpoint_name_is_a_new_stage(suite, roots, tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(b"first")
    given = with_checkpoint(suite, file, "online")
    before = plan(given, roots, tmp_path)
    assert isinstance(before[0].upstream["checkpoint"], FromFile)
    file.write_bytes(b"second")
    after = plan(given, roots, tmp_path)
    mine = {s.name for s in before if "model" in {c.row for c in s.serves}}
    assert mine and not mine & names(after)


def test_a_folder_of_masks_counts_by_what_it_holds(suite, roots, tmp_path):
    store = tmp_path / "masks"
    store.mkdir()
    changed, found = with_overrides(suite, [f"store={store}"]), []
    for content in (b"one", b"two", b"one"):
        (store / "labels.bin").write_bytes(content)
        pretraining = plan(changed, roots, tmp_path)[0]
        assert set(pretraining.upstream) == {"store"}
        found.append(pretraining.fingerprint)
    assert found[0] == found[2] != found[1]


def test_a_store_that_is_not_there_is_named(suite, roots, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no mask store .*gone"):
        plan(with_overrides(suite, [f"store={tmp_path / 'gone'}"]), roots, tmp_path)


def test_the_branch_of_a_checkpoint_is_part_of_the_stage(suite, roots, tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(b"first")
    online = plan(with_checkpoint(suite, file, "online"), roots, tmp_path)
    target = plan(with_checkpoint(suite, file, "target"), roots, tmp_path)
    convert = {s.name for s in online if s.kind == "convert"} - names(target)
    assert convert


def test_a_given_checkpoint_takes_the_place_of_pretraining_but_not_of_the_control(
    suite, roots, tmp_path
):
    file = tmp_path / "model.pth"
    file.write_bytes(b"first")
    stages = plan(with_checkpoint(suite, file, "online"), roots, tmp_path)
    assert "pretrain" not in kinds(stages)
    assert {c.row for s in stages for c in s.answers} == {"model", "Random init."}


def conversions(suite, change, roots, runs):
    """The conversions of the suite with a change of its second row, the random one."""
    rows = (suite.row[0], Row(**{"method": "Random init.", "random": {"depth": 18}} | change))
    stages = plan(suite.model_copy(update={"row": rows}), roots, runs)
    return {s.name: s for s in stages if s.kind == "convert" and s.serves[0].row == rows[1].method}


def test_a_row_can_have_its_weight_norms_rescaled(suite, roots, tmp_path):
    plain = conversions(suite, {}, roots, tmp_path)
    rescaled = conversions(suite, {"rescale": 0.1}, roots, tmp_path)
    assert len(plain) == len(rescaled) == 2
    assert not set(plain) & set(rescaled)
    assert {s.stage.config.rescale for s in rescaled.values()} == {0.1}


def test_an_anchor_counts_by_its_bytes_and_its_branch(suite, roots, tmp_path):
    first, copy, other = (tmp_path / name for name in ("first.pth", "copy.pth", "other.pth"))
    for path, content in ((first, b"1"), (copy, b"1"), (other, b"2")):
        path.write_bytes(content)
    anchored = conversions(suite, {"rescale_to": first}, roots, tmp_path)
    assert {s.upstream["anchor"].path for s in anchored.values()} == {first}
    assert {s.stage.config.anchor_branch for s in anchored.values()} == {"online"}
    assert set(conversions(suite, {"rescale_to": copy}, roots, tmp_path)) == set(anchored)
    for change in ({"rescale_to": other}, {"rescale_to": first, "anchor_branch": "target"}):
        assert not set(conversions(suite, change, roots, tmp_path)) & set(anchored)


def test_an_anchor_that_is_not_there_is_named(suite, roots, tmp_path):
    with pytest.raises(ConfigError, match=r"no checkpoint file .*gone\.pth"):
        conversions(suite, {"rescale_to": tmp_path / "gone.pth"}, roots, tmp_path)


def test_a_task_is_called_what_its_config_measures(suite, suite_path, roots, tmp_path):
    config = suite_path.with_name("svm.toml")
    config.write_text(config.read_text().replace("voc07_svm", "voc07_svm_tiny"))
    with pytest.raises(ConfigError, match="measures 'voc07_svm_tiny'"):
        plan(suite, roots, tmp_path)


def test_a_missing_checkpoint_is_named(suite, roots, tmp_path):
    with pytest.raises(ConfigError, match=r"no checkpoint file .*gone\.pth"):
        plan(with_checkpoint(suite, tmp_path / "gone.pth", "online"), roots, tmp_path)


def test_a_suite_without_rows_asks_for_a_checkpoint(suite):
    with pytest.raises(ConfigError, match="CKPT"):
        with_checkpoint(suite.model_copy(update={"row": ()}), None, "online")


def test_seeds_repeat_from_the_named_stage(suite, roots, tmp_path):
    one = plan(suite, roots, tmp_path)
    whole = plan(suite.model_copy(update={"seeds": 3}), roots, tmp_path)
    tasks = plan(suite.model_copy(update={"seeds": 3, "repeat_from": "task"}), roots, tmp_path)
    assert names(one) <= names(tasks) & names(whole)
    assert kinds(whole).count("pretrain") == 3
    assert kinds(tasks).count("pretrain") == 1
    assert kinds(tasks).count("transfer") == 3 * kinds(one).count("transfer")


def test_overrides_reach_only_the_pretrained_row(suite, roots, tmp_path):
    before = plan(suite, roots, tmp_path)
    after = plan(with_overrides(suite, ["epochs=7"]), roots, tmp_path)
    changed = names(before) - names(after)
    assert {c.row for s in before if s.name in changed for c in s.serves} == {"Ours & <co>"}


def test_an_unknown_override_is_answered_with_the_nearest_key(suite, roots, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'epochs'"):
        plan(with_overrides(suite, ["epoch=7"]), roots, tmp_path)


def test_only_keeps_a_task_with_all_it_builds_on(suite, roots, tmp_path):
    stages = select(plan(suite, roots, tmp_path), ["voc_det"])
    assert kinds(stages) == ["pretrain", "convert", "transfer", "random", "convert", "transfer"]


def test_only_by_kind_takes_the_purpose_too(suite, roots, tmp_path):
    assert kinds(select(plan(suite, roots, tmp_path), ["pretrain"])) == ["pretrain"]


def test_only_with_an_unknown_name_suggests(suite, roots, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'voc_det'"):
        select(plan(suite, roots, tmp_path), ["voc_dat"])


def test_a_branch_without_its_anchor_is_refused():
    with pytest.raises(ValueError, match="'anchor_branch' is a branch of 'rescale_to'"):
        Row(method="x", checkpoint=Path("a"), anchor_branch="target")


def test_a_row_needs_exactly_one_source():
    with pytest.raises(ValueError, match="exactly one of"):
        Row(method="x", checkpoint=Path("a"), random={})
