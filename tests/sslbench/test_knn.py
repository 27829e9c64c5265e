"""Weighted k-NN: by hand, against loops, and what must not change it."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from sslbench import knn
from sslbench.knn import Accuracy, Vote, accuracy, class_votes, mean_average_precision

# Cosine similarities of the query to the three: 1, 0.6, 0.
TRAIN = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
QUERY = torch.tensor([[5.0, 0.0]])


def draw(count: int, size: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).double()


def slow_votes(train, labels, query, vote):
    """Votes per class of one query, image by image; ``labels``: the classes that each shows."""
    cosines = [float(row @ query / (row.norm() * query.norm())) for row in train]
    nearest = sorted(range(len(train)), key=lambda i: (-cosines[i], i))[: vote.neighbours]
    weights = {i: math.exp(cosines[i] / vote.temperature) for i in nearest}
    total = sum(weights.values())
    classes = {c for shown in labels for c in shown}
    return {c: sum(w for i, w in weights.items() if c in labels[i]) / total for c in classes}


def test_the_share_of_the_votes_by_hand():
    labels = torch.tensor([[1, -1], [-1, 1], [1, 1]])
    votes = class_votes(TRAIN, labels, QUERY, Vote(neighbours=2, temperature=0.5))
    first, second = math.exp(1 / 0.5), math.exp(0.6 / 0.5)
    expected = torch.tensor([[first, second]]) / (first + second)
    assert torch.allclose(votes, expected)


def test_two_far_neighbours_outvote_a_near_one_only_at_a_high_temperature():
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels, query, truth = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    # exp(1/T) against 2 exp(0.8/T): equal at T = 0.2 / ln 2 = 0.289
    for temperature, right in ((0.28, 0.0), (0.30, 1.0)):
        vote = Vote(neighbours=3, temperature=temperature)
        assert accuracy(train, labels, query, truth, vote).top1 == right


def test_accuracies_equal_a_loop_over_images():
    train, queries, vote = draw(60), draw(40, seed=1), Vote(neighbours=9, temperature=0.1)
    labels, truth = torch.arange(60) % 8, torch.arange(40) % 8
    hits = {1: 0, 5: 0}
    for query, own in zip(queries, truth.tolist(), strict=True):
        votes = slow_votes(train, [{c} for c in labels.tolist()], query, vote)
        ranking = [c for c in sorted(votes, key=lambda c: (-votes[c], c)) if votes[c] > 0]
        for first in hits:
            hits[first] += own in ranking[:first]
    expected = Accuracy(hits[1] / 40, hits[5] / 40)
    assert accuracy(train, labels, queries, truth, vote) == expected
    assert expected.top1 < expected.top5 < 1


def test_a_class_without_a_vote_is_not_among_the_first_five():
    """The one neighbour says 0; of the other three classes nothing is known."""
    labels = torch.tensor([0, 1, 2])
    for truth in (1, 2, 3):
        found = accuracy(TRAIN, labels, QUERY, torch.tensor([truth]), Vote(neighbours=1))
        assert found == Accuracy(0.0, 0.0)


def test_mean_average_precision_equals_a_loop_and_scikit_learn():
    train, queries, vote = draw(50), draw(30, seed=1), Vote(neighbours=7, temperature=0.2)
    generator = np.random.default_rng(0)
    labels, truth = (torch.tensor(generator.choice([-1, 0, 1], (n, 4))) for n in (50, 30))
    shown = [set((row == 1).nonzero().flatten().tolist()) for row in labels]
    votes = [slow_votes(train, shown, query, vote) for query in queries]
    expected = []
    for column in range(4):
        kept = [i for i in range(30) if truth[i, column] != 0]  # only difficult instances: left out
        positive = [int(truth[i, column] == 1) for i in kept]
        expected.append(average_precision_score(positive, [votes[i][column] for i in kept]))
    found = mean_average_precision(train, labels, queries, truth, vote)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)


def test_classes_that_one_side_never_shows_are_left_out():
    labels = torch.tensor([[1, 1, -1], [-1, -1, -1], [-1, -1, 0]])
    truth = torch.tensor([[1, -1, 1]])  # class 1: never tested; class 2: never trained
    assert mean_average_precision(TRAIN, labels, QUERY, truth, Vote(neighbours=1)) == 1.0


def test_without_any_class_there_is_no_mean():
    labels, truth = torch.tensor([[-1], [0], [-1]]), torch.tensor([[1]])
    with pytest.raises(ValueError, match="no class is shown both"):
        mean_average_precision(TRAIN, labels, QUERY, truth, Vote(neighbours=1))


def test_of_equally_near_images_the_first_vote():
    train = torch.ones(40, 2)
    labels = (torch.arange(40) < 4).long()[:, None]  # the first four show the class
    votes = class_votes(train, labels, torch.ones(1, 2), Vote(neighbours=5))
    assert votes.item() == pytest.approx(4 / 5)


def test_chunks_change_nothing(monkeypatch):
    train, queries = draw(50), draw(30, seed=1)
    labels = torch.eye(5).long().repeat(10, 1)
    whole = class_votes(train, labels, queries, Vote())
    monkeypatch.setattr(knn, "CHUNK_NUMBERS", 50 * 7)  # chunks of 7 queries, a rest of 2
    assert torch.allclose(class_votes(train, labels, queries, Vote()), whole, rtol=0, atol=1e-12)
    truth = torch.arange(30) % 5
    in_chunks = accuracy(train, labels.argmax(1), queries, truth, Vote())
    monkeypatch.undo()
    assert in_chunks == accuracy(train, labels.argmax(1), queries, truth, Vote())


def test_the_length_of_a_feature_means_nothing():
    train, queries, labels = draw(30), draw(10, seed=1), torch.eye(3).long().repeat(10, 1)
    scale = torch.arange(1.0, 31)[:, None]
    votes = class_votes(train, labels, queries, Vote())
    assert torch.allclose(class_votes(train * scale, labels, queries * 7, Vote()), votes)


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(ValueError, match="4 neighbours were asked of 3 training images"):
        class_votes(TRAIN, torch.ones(3, 1), QUERY, Vote(neighbours=4))


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"temperature": 0.0}])
def test_a_vote_needs_neighbours_and_a_temperature(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        Vote(**wrong)
