"""The contrastive loss against loops that follow its definition."""

import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.losses.detcon import Targets, detcon_loss


def slow_loss(anchors, ids, own, own_ids, other, other_ids, temperature):
    """One direction, one number at a time; everything on one process."""
    anchors, own, other = (F.normalize(x, dim=-1) for x in (anchors, own, other))
    images, slots = ids.shape
    total = 0.0
    for b in range(images):
        for r in range(slots):
            name = ids[b, r].item()
            logits, positive = [], []
            for c in range(images):
                for s in range(slots):
                    logits.append((anchors[b, r] @ other[c, s]).item() / temperature)
                    positive.append(c == b and other_ids[c, s].item() == name)
                    if not (c == b and own_ids[c, s].item() == name):
                        logits.append((anchors[b, r] @ own[c, s]).item() / temperature)
                        positive.append(False)
            log_sum = math.log(sum(math.exp(x) for x in logits))
            terms = [
                log_sum - x for x, is_positive in zip(logits, positive, strict=True) if is_positive
            ]
            if terms:
                copies = (ids[b] == name).sum().item()
                total += sum(terms) / len(terms) / copies
    return total / (images * slots)


def _random_case(seed: int, images: int = 3, slots: int = 4, num_ids: int = 3):
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(images, slots, 5, generator=generator).double() for _ in range(3)]
    ids = [torch.randint(num_ids, (images, slots), generator=generator) for _ in range(2)]
    return vectors, ids


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_the_loops(seed: int):
    (anchors, own, other), (ids, other_ids) = _random_case(seed)
    fast = detcon_loss(
        anchors, ids, Targets.gather(own, ids), Targets.gather(other, other_ids), 0.1
    )
    slow = slow_loss(anchors, ids, own, ids, other, other_ids, 0.1)
    assert fast.loss.item() == pytest.approx(slow, abs=1e-9)


def test_parts_average_to_the_loss_of_the_whole_batch():
    (anchors, own, other), (ids, other_ids) = _random_case(seed=11, images=4)
    whole = detcon_loss(
        anchors, ids, Targets.gather(own, ids), Targets.gather(other, other_ids), 0.1
    )
    everyone = Targets.gather(own, ids), Targets.gather(other, other_ids)
    halves = []
    for first in (0, 2):
        mine = slice(first, first + 2)
        halves.append(detcon_loss(anchors[mine], ids[mine], *everyone, 0.1, first).loss)
    assert (sum(halves) / 2).item() == pytest.approx(whole.loss.item(), abs=1e-12)


def test_views_without_a_common_mask_cost_nothing_and_have_finite_gradients():
    anchors = torch.randn(2, 3, 4, requires_grad=True)
    ids, other_ids = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long)
    targets = torch.randn(2, 3, 4)
    made = detcon_loss(
        anchors, ids, Targets.gather(targets, ids), Targets.gather(targets, other_ids), 0.1
    )
    made.loss.backward()
    assert made.loss.item() == 0
    assert (anchors.grad == 0).all()
    assert made.share_positive == 0
    assert (made.weighted_loss, made.positive_cosine) == (0, 0)
    assert torch.isfinite(made.negative_cosine)


def test_the_weighted_loss_leaves_out_anchors_without_a_positive():
    anchors = torch.eye(2)[None]  # one image, two slots
    own = Targets.gather(anchors, torch.tensor([[5, 6]]))
    other = Targets.gather(anchors, torch.tensor([[5, 7]]))
    made = detcon_loss(anchors, torch.tensor([[5, 6]]), own, other, 1.0)
    # Anchor 5: its positive has cosine 1; 7 in the other view and 6 in its own have cosine 0.
    expected = math.log(math.e + 2) - 1
    assert made.weighted_loss.item() == pytest.approx(expected)
    assert made.loss.item() == pytest.approx(expected / 2)
    assert made.share_positive.item() == 0.5
    # Negatives in the other view: 5 with 7 (0), 6 with 5 (0), 6 with 7 (1).
    assert made.positive_cosine.item() == pytest.approx(1)
    assert made.negative_cosine.item() == pytest.approx(1 / 3)


def test_without_negatives_their_cosine_is_no_nan():
    ids = torch.zeros(1, 2, dtype=torch.long)
    targets = Targets.gather(torch.eye(2)[None], ids)
    made = detcon_loss(torch.eye(2)[None], ids, targets, targets, 1.0)
    assert made.negative_cosine == 0


def test_targets_receive_no_gradient():
    targets = torch.randn(2, 3, 4, requires_grad=True)
    assert not Targets.gather(targets, torch.zeros(2, 3, dtype=torch.long)).vectors_ND.requires_grad


def test_the_same_id_in_another_image_is_a_negative():
    """Ids compare within an image only: with equal ids everywhere the positives are still local."""
    anchors = torch.eye(2)[:, None]  # two images, one slot each
    ids = torch.full((2, 1), 9)
    targets = Targets.gather(anchors, ids)
    loss = detcon_loss(anchors, ids, targets, targets, 1.0).loss
    # Candidates: own image in the other view (cos 1, the positive), the other in both (cos 0).
    assert loss.item() == pytest.approx(math.log(math.e + 2) - 1)
