"""The SVMs: protocol, difficult rules, folds, skipped classes, processes."""

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from eval_svm import svm
from eval_svm.config import SVMConfig
from eval_svm.svm import Solver, cross_validate, evaluate_class, evaluate_classes
from sslbench.config import ConfigError, build

PROTOCOL = Solver((0.01, 0.1, 1.0, 10.0), 3, 2.0, 1e-4, 2000)
ONE_COST = Solver((1.0,), 3, 2.0, 1e-4, 2000)


def problem(seed: int, num_images: int, signal: float, num_classes: int = 1):
    """Unit features in which a class shifts its own axis by ``signal``."""
    generator = np.random.default_rng(seed)
    labels = np.where(generator.random((num_images, num_classes)) < 0.3, 1, -1).astype(np.int8)
    features = np.abs(generator.normal(size=(num_images, 24))).astype(np.float32)
    features[:, :num_classes] += signal * (labels == 1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, labels


def test_a_separable_class_reaches_100():
    train, test = problem(0, 120, 20), problem(1, 80, 20)
    result = evaluate_class("a", train[0], train[1][:, 0], test[0], test[1][:, 0], PROTOCOL)
    assert result.ap == 1.0
    assert result.ap_envelope == 1.0


def test_cross_validation_equals_scikit_learns_own():
    features, labels = problem(0, 90, 0.5)
    targets = labels[:, 0].astype(int)
    means = cross_validate(features, targets, PROTOCOL)
    assert list(means) == list(PROTOCOL.costs)
    for cost, mean in means.items():
        reference = LinearSVC(
            dual=True, C=cost, class_weight={1: 2, -1: 1}, random_state=0, max_iter=2000
        )
        expected = cross_val_score(
            reference, features, targets, cv=3, scoring="average_precision"
        ).mean()
        assert mean == pytest.approx(expected, abs=1e-12)


def test_the_best_cost_is_refitted_on_everything():
    features, labels = problem(0, 90, 0.5)
    test, truth = problem(1, 60, 0.5)
    result = evaluate_class("a", features, labels[:, 0], test, truth[:, 0], PROTOCOL)
    means = cross_validate(features, labels[:, 0].astype(int), PROTOCOL)
    assert result.cost == max(means, key=means.__getitem__)
    single = Solver((result.cost,), 3, 2.0, 1e-4, 2000)
    assert evaluate_class("a", features, labels[:, 0], test, truth[:, 0], single).ap == result.ap


def test_difficult_images_are_absent_in_training():
    features, labels = problem(0, 90, 0.5)
    test, truth = problem(1, 60, 0.5)
    as_difficult, as_absent = labels[:, 0].copy(), labels[:, 0].copy()
    chosen = np.flatnonzero(labels[:, 0] == -1)[:10]
    as_difficult[chosen] = 0
    ours = evaluate_class("a", features, as_difficult, test, truth[:, 0], ONE_COST)
    theirs = evaluate_class("a", features, as_absent, test, truth[:, 0], ONE_COST)
    assert ours == theirs


def test_difficult_images_are_left_out_of_the_test():
    features, labels = problem(0, 90, 0.5)
    test, truth = problem(1, 60, 0.5)
    with_difficult = truth[:, 0].copy()
    with_difficult[::4] = 0
    kept = with_difficult != 0
    ours = evaluate_class("a", features, labels[:, 0], test, with_difficult, ONE_COST)
    theirs = evaluate_class("a", features, labels[:, 0], test[kept], with_difficult[kept], ONE_COST)
    assert ours == theirs
    as_absent = np.where(with_difficult == 0, -1, with_difficult)
    other = evaluate_class("a", features, labels[:, 0], test, as_absent, ONE_COST)
    assert other.ap != ours.ap


@pytest.mark.parametrize(("num_positives", "skipped"), [(0, True), (2, True), (3, False)])
def test_a_class_needs_a_positive_in_every_fold(num_positives: int, skipped: bool):
    features, _ = problem(0, 60, 0)
    labels = np.full(60, -1, np.int8)
    labels[:num_positives] = 1
    test_labels = np.array([1, -1] * 30, np.int8)
    result = evaluate_class("a", features, labels, features, test_labels, PROTOCOL)
    assert bool(result.skipped) == skipped
    assert (result.ap is None) == skipped
    assert result.num_positives == num_positives


def test_a_class_absent_from_the_test_is_skipped():
    features, labels = problem(0, 60, 0)
    absent = np.full(60, -1, np.int8)
    absent[0] = 0
    result = evaluate_class("a", features, labels[:, 0], features, absent, ONE_COST)
    assert result.skipped == "no test image shows it"


def test_processes_change_no_bit(monkeypatch):
    train, test = problem(0, 60, 0.3, num_classes=3), problem(1, 60, 0.3, num_classes=3)
    found = {}
    for limit in (10**9, 0):
        monkeypatch.setattr(svm, "SMALL_PROBLEM", limit)
        results: list[svm.ClassResult] = []
        evaluate_classes(["a", "b", "c"], train, test, PROTOCOL, results.append)
        found[limit] = results
    assert [r.name for r in found[0]] == ["a", "b", "c"]
    assert found[0] == found[10**9]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"costs": [1.0, -1.0]}, "positive numbers"),
        ({"costs": []}, "positive numbers"),
        ({"costs": [1.0, 0.1]}, "ascend"),
        ({"folds": 1}, "folds"),
        ({"crop": 300}, "does not fit into resize 256"),
        ({"resize": 0}, "resize"),
        ({"cost": [1.0]}, "did you mean 'costs'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(table, words: str):
    with pytest.raises(ConfigError, match=words):
        build(SVMConfig, table, "x.toml")


def test_the_defaults_are_the_protocol():
    assert SVMConfig().departures_from_protocol() == ()
    assert build(SVMConfig, {"costs": [1.0]}, "x").departures_from_protocol() == (
        "departs from voc07_svm in costs [1.0]",
    )
