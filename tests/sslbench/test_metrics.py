"""Average precision of both kinds, worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from sslbench.metrics import average_precision, envelope_average_precision, precision_recall

# Ranking + - - + + : precision at the positives 1, 2/4, 3/5.
SCORES = [0.9, 0.8, 0.7, 0.6, 0.5]
TRUTH = [1, 0, 0, 1, 1]


def test_step_wise_by_hand():
    assert average_precision(SCORES, TRUTH) == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


def test_envelope_by_hand():
    # at recall 2/3 the best precision to come is 3/5, not 2/4
    assert envelope_average_precision(SCORES, TRUTH) == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)


def test_neither_is_the_eleven_point_average():
    eleven = (4 * 1 + 7 * 3 / 5) / 11
    assert average_precision(SCORES, TRUTH) != pytest.approx(eleven)
    assert envelope_average_precision(SCORES, TRUTH) != pytest.approx(eleven)


def test_step_wise_equals_scikit_learn_with_ties():
    generator = np.random.default_rng(0)
    for _ in range(50):
        scores = generator.integers(0, 8, size=40).astype(float)
        truth = generator.integers(0, 2, size=40)
        truth[0] = 1
        assert average_precision(scores, truth) == pytest.approx(
            average_precision_score(truth, scores)
        )


def test_the_order_of_the_input_means_nothing():
    generator = np.random.default_rng(1)
    scores, truth = generator.integers(0, 5, 30).astype(float), generator.integers(0, 2, 30)
    order = generator.permutation(30)
    for measure in (average_precision, envelope_average_precision):
        assert measure(scores, truth) == measure(scores[order], truth[order])


def test_a_perfect_ranking_is_one_and_the_worst_is_the_tail():
    for measure in (average_precision, envelope_average_precision):
        assert measure([3.0, 2.0, 1.0], [1, 1, 0]) == 1.0
        assert measure([3.0, 2.0, 1.0], [0, 0, 1]) == pytest.approx(1 / 3)


def test_envelope_is_never_below_the_steps():
    generator = np.random.default_rng(2)
    for _ in range(20):
        scores, truth = generator.normal(size=30), generator.integers(0, 2, 30)
        truth[0] = 1
        steps = average_precision(scores, truth)
        assert envelope_average_precision(scores, truth) >= steps - 1e-12


@pytest.mark.parametrize(
    ("scores", "truth"), [([1.0], [1, 0]), ([], []), ([float("nan")], [1]), ([[1.0]], [[1]])]
)
def test_what_is_no_ranking_is_refused(scores, truth):
    with pytest.raises(ValueError, match=r"no ranking|must be finite"):
        precision_recall(scores, truth)
