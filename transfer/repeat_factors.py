"""How often an epoch shows each image: repeat-factor sampling (LVIS paper, Appendix B.2).

An image is shown as often as its rarest category asks for: r(c) = max(1, sqrt(t / f(c))), where
f(c) is the share of training images with category c. A factor of 2.3 is three showings in three
of ten epochs, else two. What an epoch shows is a function of (seed, epoch).
"""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from sslbench.datasets import Record
from sslbench.rng import numpy_generator
from transfer.engines.recipe import Recipe


def sampling_factors(recipe: Recipe, records: Sequence[Record]) -> np.ndarray | None:
    """The factor of each training image; None where a recipe shows every image once."""
    if recipe["DATALOADER.SAMPLER_TRAIN"] != "RepeatFactorTrainingSampler":
        return None
    # crowds count, as in Detectron2: the category is in the image
    categories = [{item.category for item in record.objects} for record in records]
    return repeat_factors(
        categories, recipe["DATALOADER.REPEAT_THRESHOLD"], root=recipe["DATALOADER.REPEAT_SQRT"]
    )


def repeat_factors(
    categories: Sequence[Collection[int]], threshold: float, *, root: bool = True
) -> np.ndarray:
    """One factor of at least 1 for each image.

    Args:
        categories: of each image, each once.
        threshold: share of images below which a category is repeated.
        root: whether the factor grows with the square root of rarity.
    """
    counts = Counter(category for image in categories for category in image)
    wanted = {c: threshold * len(categories) / count for c, count in counts.items()}
    power = 0.5 if root else 1.0
    factors = [max([1.0, *(wanted[c] ** power for c in image)]) for image in categories]
    return np.array(factors, np.float64)


def epoch_indices(factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Indices of the images that an epoch shows, ascending; fractions are rounded at random."""
    drawn = numpy_generator(seed, "repeat", epoch).random(len(factors))
    whole = np.floor(factors)
    times = (whole + (drawn < factors - whole)).astype(np.int64)
    return np.repeat(np.arange(len(factors)), times)
