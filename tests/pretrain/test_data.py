"""The order of images and their views depend on (seed, epoch, image) and on nothing else."""

import numpy as np
import pytest
import torch

from pretrain import data
from pretrain.data import ViewSpec, epoch_order, make_loader, rank_share, to_device
from pretrain.masks.sources import make_fixed_masks
from pretrain.masks.store import MaskEntry, MaskStore, stored_size, write_store
from pretrain.methods.cyborgs import RECIPES
from sslbench.datasets import DataError, decode_rgb, images_id
from sslbench.log import RunLog

SPEC = ViewSpec(RECIPES, crop_size=32, num_uniforms=4)


def _batches(image_list, masks=None, **settings):
    settings = {"batch_size": 4, "seed": 0, "epoch": 1, **settings}
    return list(make_loader(image_list, masks, SPEC, **settings))


def _same(first, second) -> bool:
    pairs = zip(first.views, second.views, strict=True)
    return torch.equal(first.indices_B, second.indices_B) and all(
        torch.equal(a.images_B3SS, b.images_B3SS)
        and torch.equal(a.geometry.box_B4, b.geometry.box_B4)
        and torch.equal(a.draws.factors_B4, b.draws.factors_B4)
        and torch.equal(a.uniforms_BR, b.uniforms_BR)
        for a, b in pairs
    )


def test_an_epoch_holds_each_image_at_most_once():
    order = epoch_order(23, 4, seed=0, epoch=3)
    assert order.shape == (5, 4)
    assert len(set(order.ravel().tolist())) == 20


def test_epochs_differ_and_repeat_exactly():
    assert not np.array_equal(epoch_order(50, 5, 0, 1), epoch_order(50, 5, 0, 2))
    assert not np.array_equal(epoch_order(50, 5, 0, 1), epoch_order(50, 5, 1, 1))
    assert np.array_equal(epoch_order(50, 5, 0, 1), epoch_order(50, 5, 0, 1))


def test_ranks_share_every_batch_without_overlap(monkeypatch):
    order, shares = epoch_order(24, 6, 0, 1), []
    monkeypatch.setattr(data.dist, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(data.dist, "rank", lambda rank=rank: rank)
        shares.append(rank_share(order))
    assert np.array_equal(np.concatenate(shares, axis=1), order)


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(data.dist, "world_size", lambda: 4)
    with pytest.raises(DataError, match="not divisible by 4"):
        rank_share(epoch_order(24, 6, 0, 1))


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(DataError, match="3 images do not fill one batch of 8"):
        epoch_order(3, 8, 0, 1)


def test_workers_change_nothing(image_list):
    alone, helped = _batches(image_list), _batches(image_list, num_workers=2)
    assert all(_same(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_without_a_traceback(num_workers, image_list):
    """torch puts a worker's traceback into the message of what the worker raised."""
    (image_list.base / image_list.name(3)).write_bytes(b"no image")
    with pytest.raises(DataError) as raised:
        _batches(image_list, batch_size=10, num_workers=num_workers)
    assert str(raised.value).startswith("image image_03.png (8 bytes) cannot be decoded")
    assert "Traceback" not in str(raised.value)


def test_starting_later_gives_the_rest_of_the_epoch(image_list):
    whole, rest = _batches(image_list), _batches(image_list, first_step=1)
    assert _same(whole[1], rest[0])
    assert len(rest) == len(whole) - 1


def test_an_image_has_the_same_views_in_any_batch(image_list):
    small = {int(b.indices_B[0]): b for b in _batches(image_list, batch_size=1)}
    for batch in _batches(image_list, batch_size=4):
        for row, index in enumerate(batch.indices_B.tolist()):
            for one, many in zip(small[index].views, batch.views, strict=True):
                assert torch.equal(one.images_B3SS[0], many.images_B3SS[row])


def test_the_two_views_and_the_epochs_differ(image_list):
    first, later = _batches(image_list)[0], _batches(image_list, epoch=2)[0]
    assert not torch.equal(first.views[0].images_B3SS, first.views[1].images_B3SS)
    assert not torch.equal(first.views[0].geometry.box_B4, later.views[0].geometry.box_B4)


def test_views_carry_labels_once_there_are_masks(image_list, tmp_path):
    with RunLog(tmp_path) as log:
        masks = make_fixed_masks("grid", image_list, images_id(image_list), tmp_path / "m", log)
    batch = to_device(_batches(image_list, masks)[0], 5, torch.device("cpu"))
    assert batch.step == 5
    for view in batch.views:
        assert view.labels_BSS.shape == (4, 32, 32)
        assert view.labels_BSS.max() <= 24
        assert view.images_B3SS.dtype == torch.float32
    assert _batches(image_list)[0].views[0].labels_BSS is None


def test_stored_masks_reach_the_views_as_a_full_size_map_would(image_list, tmp_path):
    """Round trip against the label map enlarged to the image; they part at cell borders only."""
    generator = np.random.default_rng(0)
    sizes = [decode_rgb(image_list.read(i), "").shape[:2] for i in range(len(image_list))]
    stored = [generator.integers(0, 256, stored_size(*size), dtype=np.uint8) for size in sizes]
    entries = [MaskEntry(m, *s, 256, 0) for m, s in zip(stored, sizes, strict=True)]
    identity = images_id(image_list)
    write_store(tmp_path / "m", entries, {"images_id": identity})
    for batch in _batches(image_list, MaskStore(tmp_path / "m", identity)):
        for view in batch.views:
            for row, index in enumerate(batch.indices_B.tolist()):
                box, flip = view.geometry.box_B4[row].tolist(), bool(view.geometry.flip_B[row])
                expected, near_border = _full_size_view(stored[index], sizes[index], box, flip)
                same = view.labels_BSS[row].numpy() == expected
                assert (same | near_border).all() and same.mean() > 0.9


def _full_size_view(stored_hw, size, box, flip):
    """Crop of the enlarged map, and which of its pixels have another label beside them."""
    height, width = size
    rows = ((np.arange(height) + 0.5) * stored_hw.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * stored_hw.shape[1] / width).astype(int)
    whole = stored_hw[rows][:, columns]
    padded = np.pad(whole, 1, mode="edge")
    around = [padded[i : i + height, j : j + width] != whole for i, j in np.ndindex(3, 3)]
    x, y, w, h = box
    place = (np.arange(32) + 0.5) / 32
    down, across = (y + place * h).astype(int), (x + place * w).astype(int)
    cut = np.ix_(down, across[::-1] if flip else across)
    return whole[cut], np.any(around, axis=0)[cut]


def test_a_mask_of_another_image_size_is_refused(image_list, tmp_path):
    entry = MaskEntry(np.zeros(stored_size(64, 64), np.uint8), 64, 64, clusters=1, group=0)
    identity = images_id(image_list)
    write_store(tmp_path / "m", [entry] * len(image_list), {"images_id": identity})
    with pytest.raises(DataError, match="its mask was made for"):
        _batches(image_list, MaskStore(tmp_path / "m", identity))
