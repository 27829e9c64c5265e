"""Masks that were made before, by ``make`` or by another run: read where they lie."""

from pathlib import Path

from pretrain.masks.store import MaskError, MaskStore
from pretrain.masks.verify import problems
from sslbench import dist


def open_whole(folder: Path, images_id: str) -> MaskStore:
    """Open a store that a run is to train on, once all about it is checked.

    Raises:
        MaskError: it is missing, incomplete, damaged, or made of other images.
    """
    store = MaskStore(folder, images_id)
    found = next(problems(folder), "")
    if found:
        raise MaskError(found)
    return store


def link(folder: Path, store: MaskStore) -> None:
    """Let a run's generation ``folder`` be a link to the store, which is not copied."""
    place = store.folder.resolve()
    if dist.is_main() and not (folder.is_symlink() and folder.readlink() == place):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.unlink(missing_ok=True)  # a link to where the store lay before
        folder.symlink_to(place, target_is_directory=True)
