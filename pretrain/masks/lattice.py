"""Gaussian filtering in several dimensions on the permutohedral lattice (Adams et al. 2010).

Each point spreads its values over the corners of the lattice's simplex around it, the lattice is
blurred along its axes, and each point reads back from its corners: a convolution with a Gaussian
of unit variance, up to one constant, in time linear in the number of points.

Shape letters: N points, F dimensions, C = F + 1 corners of a simplex and axes of the lattice,
M occupied lattice points, L values carried by a point.
"""

import math

import numpy as np
from scipy.sparse import csr_array


class Lattice:
    """The lattice around some points, ready to filter any values they carry.

    Args:
        points_NF: in units of the Gaussian's standard deviation.

    Raises:
        ValueError: the points lie too far apart to be indexed.
    """

    def __init__(self, points_NF: np.ndarray) -> None:
        keys_NCF, self.weights_NC = _simplices(points_NF.astype(np.float32))
        num_points, num_corners = self.weights_NC.shape
        low_F = keys_NCF.min(axis=(0, 1)) - num_corners  # room for neighbours
        spans_F = keys_NCF.max(axis=(0, 1)) + num_corners - low_F + 1
        if math.prod(spans_F.tolist()) >= 2**63:
            raise ValueError(f"points {spans_F.tolist()} lattice steps apart are too far to index")
        strides_F = np.cumprod([1, *spans_F[:0:-1]])[::-1]
        codes_M, corners = np.unique((keys_NCF - low_F) @ strides_F, return_inverse=True)
        starts = np.arange(num_points + 1) * num_corners
        self.read_NM = csr_array(
            (self.weights_NC.ravel(), corners.ravel(), starts), (num_points, len(codes_M))
        )
        self.spread_MN = self.read_NM.T.tocsr()
        steps_C = np.append(num_corners * strides_F, 0) - strides_F.sum()
        self.blurs = [_blur(codes_M, step) for step in steps_C.tolist()]

    def filter(self, values_NL: np.ndarray) -> np.ndarray:
        """Sum over all points of Gaussian times values, at each point, float32 (N, L)."""
        carried_ML = self.spread_MN @ np.ascontiguousarray(values_NL, np.float32)
        for blur_MM in self.blurs:
            carried_ML = blur_MM @ carried_ML
        filtered_NL: np.ndarray = self.read_NM @ carried_ML
        return filtered_NL

    def own_weight(self) -> np.ndarray:
        """What of a point's value comes back to itself where all neighbours are occupied, (N,).

        Between two corners m places apart in their order the blur leads by m steps forward or by
        the other axes backward (all of them sum to 0). A way over a lattice point that is not
        occupied is counted here but not gone by ``filter``, so this is too much. In 5 dimensions
        there came back of it, on average, 0.92 and 0.94 in two photographs of 320x214 pixels and
        0.82 to points alone in the lattice; these are the worst case, down to 0.76.
        """
        num_corners = self.weights_NC.shape[1]
        apart_C = np.arange(num_corners)
        shares_C = 0.25**apart_C * 0.5 ** (num_corners - apart_C)
        around_C = 0.5**apart_C * 0.25 ** (num_corners - apart_C)
        around_C[0] *= 2  # a whole turn, in either sense
        shares_CC = (shares_C + around_C)[abs(apart_C[:, None] - apart_C)]
        own_N: np.ndarray = ((self.weights_NC @ shares_CC) * self.weights_NC).sum(axis=1)
        return own_N.astype(np.float32)


def _blur(codes_M: np.ndarray, step: int) -> csr_array:
    """Half of each lattice point and a quarter of both neighbours along an axis, (M, M)."""
    places_M = np.arange(len(codes_M))
    rows, columns, weights = [places_M], [places_M], [np.full(len(codes_M), 0.5, np.float32)]
    for wanted_M in (codes_M - step, codes_M + step):
        found_M = np.searchsorted(codes_M, wanted_M).clip(max=len(codes_M) - 1)
        there_M = codes_M[found_M] == wanted_M
        rows.append(places_M[there_M])
        columns.append(found_M[there_M])
        weights.append(np.full(there_M.sum(), 0.25, np.float32))
    entries = (np.concatenate(rows), np.concatenate(columns))
    return csr_array((np.concatenate(weights), entries), (len(codes_M), len(codes_M)))


def _simplices(points_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners around each point, int64 (N, C, F), and the point's barycentric weights (N, C)."""
    num_corners = points_NF.shape[1] + 1
    elevated_NC = points_NF @ _elevation(num_corners).astype(points_NF.dtype)
    origin_NC = np.rint(elevated_NC / num_corners).astype(np.int64) * num_corners
    order_NC = np.argsort(origin_NC - elevated_NC, axis=1, kind="stable")
    ranks_NC = np.argsort(order_NC, axis=1)
    ranks_NC += origin_NC.sum(axis=1, keepdims=True) // num_corners
    wraps_NC = (ranks_NC < 0).astype(np.int64) - (ranks_NC >= num_corners)
    ranks_NC += num_corners * wraps_NC
    origin_NC += num_corners * wraps_NC

    by_rank_NC = np.empty_like(elevated_NC)
    np.put_along_axis(by_rank_NC, ranks_NC, (elevated_NC - origin_NC) / num_corners, axis=1)
    # falling order; the largest and the smallest differ by at most 1, and the rest is the origin's
    falling_NC = by_rank_NC[:, ::-1]
    weights_NC = falling_NC.copy()
    weights_NC[:, 1:] -= falling_NC[:, :-1]
    weights_NC[:, 0] += 1 - falling_NC[:, -1]
    corners_C = np.arange(num_corners)[:, None]
    beyond_NCC = ranks_NC[:, None] > num_corners - 1 - corners_C
    keys_NCC = origin_NC[:, None] + corners_C - num_corners * beyond_NCC
    return keys_NCC[..., :-1], weights_NC


def _elevation(num_corners: int) -> np.ndarray:
    """The F axes as vectors in the plane of sum 0, (F, C), where the blur has unit variance."""
    rows_FC = np.zeros((num_corners - 1, num_corners))
    for row in range(num_corners - 1):
        rows_FC[row, : row + 1] = 1
        rows_FC[row, row + 1] = -(row + 1)
        rows_FC[row] /= math.sqrt((row + 1) * (row + 2))
    return rows_FC * num_corners * math.sqrt(2 / 3)
