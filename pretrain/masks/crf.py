"""Refine clustered labels by a dense CRF, solved by mean field (paper Table 2b).

Kraehenbuehl and Koltun 2011: neighbours in place and colour are drawn to the same label. Exact,
over all pairs of cells of the stride-8 grid. As in the authors' code each kernel is scaled by the
square roots of its row sums, to which the customary weights belong; as in their Eq. 4 no cell
sends a message to itself. At 1/8 cell the first kernel is all but zero between two cells (e^-32):
on this grid the second one does the work.

Shape letters: N cells (h x w) of an image, L labels, C cells of a chunk, D channels, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

KAPPA = 10.0  # inverse temperature of the labels' posterior, as in the clustering loss
ITERATIONS = 10
CELL = 8  # pixels
# The customary values of DeepLab; the paper gives none. Sigmas in pixels and in 0..255 colours.
NEAR_WEIGHT, NEAR_SIGMA = 3.0, 1.0
ALIKE_WEIGHT, ALIKE_SIGMA, COLOUR_SIGMA = 4.0, 67.0, 3.0

CHUNK_CELLS = 1024  # rows of the N x N kernel computed at a time
KEPT_CELLS = 8192  # up to this N the kernel is kept (268 MB), beyond it is computed anew each time


def refine(
    points_ND: Tensor, prototypes_KD: Tensor, labels_N: Tensor, colours_hw3: Tensor
) -> Tensor:
    """Refine the labels of one image; no label appears that was not there.

    Args:
        points_ND: unit features of the cells, row by row.
        prototypes_KD: unit rows; a label is the index of one.
        labels_N: int64, before.
        colours_hw3: mean colour of each cell, 0..255.

    Returns:
        int64 (N,).
    """
    present_L = labels_N.unique()
    logits_NL = KAPPA * points_ND @ prototypes_KD[present_L].T
    posterior_NL = mean_field(-F.log_softmax(logits_NL, dim=1), colours_hw3)
    return present_L[posterior_NL.argmax(dim=1)]


@torch.no_grad()
def mean_field(unary_NL: Tensor, colours_hw3: Tensor) -> Tensor:
    """Posterior of the labels after all iterations, (N, L), in the precision of the unaries.

    The compatibility is Potts': two cells that differ pay their kernel.
    """
    kernel = _Kernel(colours_hw3)
    posterior_NL = F.softmax(-unary_NL, dim=1)
    for _ in range(ITERATIONS):
        posterior_NL = F.softmax(kernel.messages(posterior_NL) - unary_NL, dim=1)
    return posterior_NL


class _Kernel:
    """The weighted N x N kernel, without its diagonal."""

    def __init__(self, colours_hw3: Tensor) -> None:
        h, w = colours_hw3.shape[:2]
        rows_N, columns_N = torch.meshgrid(
            torch.arange(h, device=colours_hw3.device),
            torch.arange(w, device=colours_hw3.device),
            indexing="ij",
        )
        places_N2 = torch.stack([rows_N, columns_N], dim=2).flatten(0, 1).to(colours_hw3) * CELL
        alike_N5 = torch.cat(
            [places_N2 / ALIKE_SIGMA, colours_hw3.flatten(0, 1) / COLOUR_SIGMA], dim=1
        )
        self.features = ((NEAR_WEIGHT, places_N2 / NEAR_SIGMA), (ALIKE_WEIGHT, alike_N5))
        self.chunks = torch.arange(h * w, device=colours_hw3.device).split(CHUNK_CELLS)
        self.scales = [
            torch.cat([_gaussian(points, rows_C).sum(dim=1) for rows_C in self.chunks]).rsqrt()
            for _, points in self.features
        ]
        kept = h * w <= KEPT_CELLS
        self.kept = [self._rows(rows_C) for rows_C in self.chunks] if kept else None

    def messages(self, posterior_NL: Tensor) -> Tensor:
        """What all other cells send to each."""
        blocks = self.kept or (self._rows(rows_C) for rows_C in self.chunks)
        return torch.cat([block_CN @ posterior_NL for block_CN in blocks])

    def _rows(self, rows_C: Tensor) -> Tensor:
        block_CN = sum(
            weight * scale_N[rows_C, None] * scale_N * _gaussian(points, rows_C)
            for (weight, points), scale_N in zip(self.features, self.scales, strict=True)
        )
        block_CN[torch.arange(len(rows_C)), rows_C] = 0
        return block_CN


def _gaussian(points_NF: Tensor, rows_C: Tensor) -> Tensor:
    """exp(-distance^2 / 2) between some points and all, (C, N)."""
    distances_CN = torch.cdist(
        points_NF[rows_C], points_NF, compute_mode="donot_use_mm_for_euclid_dist"
    )
    return torch.exp(-distances_CN.square() / 2)
