"""The other mode of the paper's Fig. 4, for pictures: upsample the features first, then cluster.

One image is clustered alone, with as many clusters as its stored map has labels, so that the two
pictures differ in fineness only. At half the image's resolution: 640x480 takes 0.2 GB at 512
channels.
"""

import numpy as np

from pretrain.masks.cells import enlarge
from pretrain.masks.kmeans import KMeans, kmeans
from pretrain.masks.picture_features import PictureFeatures
from sslbench.rng import torch_generator

STEP = 2  # pixels between points


def upsampled_labels(
    features: PictureFeatures, image_HW3: np.ndarray, num_clusters: int, seed: int, index: int
) -> np.ndarray:
    """Labels of every pixel, (H, W)."""
    height, width = image_HW3.shape[:2]
    grid = (-(-height // STEP), -(-width // STEP))
    generator = torch_generator(seed, "upsampled", index)
    points_ND = features.upsampled(image_HW3, grid)
    made = kmeans(points_ND, num_clusters, generator, KMeans(metric=features.metric))
    return enlarge(made.labels_N.reshape(grid).numpy(), height, width)
