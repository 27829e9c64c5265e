"""k-means: what it finds by either backend and start, and the inputs that break others."""

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F

from pretrain.masks import kmeans as kmeans_module
from pretrain.masks.kmeans import KMeans, PointsError, kmeans
from pretrain.masks.kmeans_faiss import BackendError

HAS_FAISS = importlib.util.find_spec("faiss") is not None


@pytest.fixture(
    params=[
        "torch",
        pytest.param("faiss", marks=pytest.mark.skipif(not HAS_FAISS, reason="needs FAISS")),
    ]
)
def backend(request):
    return request.param


@pytest.fixture(params=["random", "kmeans++"])
def rule(request, backend):
    """Any way to cluster by direction."""
    return KMeans(start=request.param, backend=backend)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_kmeans(points, start, iterations):
    """Lloyd's iterations, point by point; no empty clusters expected."""
    points = F.normalize(points.double(), dim=1)
    centers = points[start]
    for _ in range(iterations + 1):
        labels = [max(range(len(centers)), key=lambda k: (p @ centers[k]).item()) for p in points]
        last = centers
        sums = [
            sum(p for p, k in zip(points, labels, strict=True) if k == c)
            for c in range(len(centers))
        ]
        centers = F.normalize(torch.stack(sums), dim=1)
    return last, torch.tensor(labels)


def test_agrees_with_the_loops(backend):
    points = torch.randn(60, 4, generator=_generator(3))
    start = torch.randperm(60, generator=_generator(5))[:4]
    made = kmeans(points, 4, _generator(5), KMeans(6, backend=backend))
    centers, labels = slow_kmeans(points, start, iterations=6)
    assert torch.equal(made.labels_N, labels)
    assert torch.allclose(made.centers_KD.double(), centers, atol=1e-5)


def test_euclidean_agrees_with_the_loops(backend):
    """Points of very different lengths: the directions alone would cluster otherwise."""
    points = torch.randn(60, 3, generator=_generator(3)) * torch.rand(60, 1).mul(9).add(1)
    start = torch.randperm(60, generator=_generator(5))[:4]
    made = kmeans(points, 4, _generator(5), KMeans(6, "euclidean", backend=backend))
    centers = points[start].double()
    for step in range(7):
        distances = [[(p - c).norm().item() for c in centers] for p in points.double()]
        labels = torch.tensor([row.index(min(row)) for row in distances])
        if step < 6:
            centers = torch.stack([points[labels == k].double().mean(0) for k in range(4)])
    assert torch.equal(made.labels_N, labels)
    assert torch.allclose(made.centers_KD.double(), centers, atol=1e-5)


def test_euclidean_refills_empty_clusters_without_nan(backend):
    points = torch.cat([torch.zeros(30, 4), torch.eye(4)[:1] * 7])
    made = kmeans(points, 5, _generator(), KMeans(metric="euclidean", backend=backend))
    assert torch.isfinite(made.centers_KD).all() and len(made.centers_KD) == 5


def test_separate_directions_become_separate_clusters(rule):
    centers = torch.eye(8)[:4] * 5
    points = centers.repeat_interleave(25, 0) + 0.1 * torch.randn(100, 8, generator=_generator(1))
    made = kmeans(points, 4, _generator(2), rule)
    groups = made.labels_N.view(4, 25)
    assert all(len(group.unique()) == 1 for group in groups)


def test_a_seed_gives_the_same_clusters_again(rule):
    points = torch.randn(200, 6, generator=_generator(1))
    first, second = (kmeans(points, 10, _generator(7), rule) for _ in range(2))
    assert torch.equal(first.labels_N, second.labels_N)
    assert torch.equal(first.centers_KD, second.centers_KD)


def test_fewer_points_than_clusters_give_one_cluster_each(rule):
    made = kmeans(torch.eye(3), 8, _generator(), rule)
    assert len(made.centers_KD) == 3
    assert sorted(made.labels_N.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("points", [torch.ones(20, 4), torch.zeros(20, 4)], ids=["equal", "zero"])
def test_points_without_any_difference_leave_no_nan(points, rule):
    made = kmeans(points, 5, _generator(), rule)
    assert len(made.centers_KD) == 5
    assert torch.isfinite(made.centers_KD).all()


def test_zero_rows_share_one_cluster(rule):
    points = torch.cat([torch.zeros(6, 3), torch.eye(3).repeat(4, 1)])
    made = kmeans(points, 3, _generator(4), rule)
    assert len(made.labels_N[:6].unique()) == 1


def test_a_cluster_that_starts_empty_takes_half_of_the_largest():
    """Two centres start on copies of one point, so one of them owns nothing at first."""
    copies = torch.eye(4)[:1].repeat(20, 1)
    spread = torch.eye(4)[1:2] + 0.3 * torch.randn(40, 4, generator=_generator(0))
    points, met = torch.cat([copies, spread]), 0
    for seed in range(40):
        starts = torch.randperm(60, generator=_generator(seed))[:3]
        if (starts < 20).sum() < 2:
            continue
        met += 1
        made = kmeans(points, 3, _generator(seed))
        assert made.num_empty == 0 and len(made.labels_N.unique()) == 3
    assert met > 3


def test_clusters_that_no_point_can_fill_are_counted_and_stay():
    """Fewer distinct points than K: the softmax keeps its K columns."""
    points = torch.eye(4)[:2].repeat(10, 1)
    made = kmeans(points, 5, _generator())
    assert made.num_empty == 3 and len(made.centers_KD) == 5
    assert torch.isfinite(made.centers_KD).all()


def test_the_objective_does_not_fall_with_more_iterations(backend):
    points = F.normalize(torch.randn(300, 8, generator=_generator(9)), dim=1)

    def objective(iterations):
        made = kmeans(points, 12, _generator(3), KMeans(iterations, backend=backend))
        return (points * made.centers_KD[made.labels_N]).sum(1).mean().item()

    values = [objective(n) for n in (1, 2, 3, 10, 20)]
    assert values == sorted(values)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_are_refused(value):
    points = torch.ones(4, 2)
    points[2, 0] = value
    with pytest.raises(PointsError, match="not finite"):
        kmeans(points, 2, _generator())


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_iteration_follows_one_that_changed_no_label(metric, monkeypatch):
    """The centres are the same as after all of them."""
    points = torch.randn(80, 4, generator=_generator(6))
    updates, original = [], kmeans_module._centroids

    def counted(*arguments):
        updates.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(kmeans_module, "_centroids", counted)
    made = kmeans(points, 5, _generator(1), KMeans(500, metric))
    needed = len(updates)
    assert needed < 100
    again = kmeans(points, 5, _generator(1), KMeans(needed, metric))
    assert torch.equal(made.centers_KD, again.centers_KD)
    assert not torch.equal(
        made.centers_KD, kmeans(points, 5, _generator(1), KMeans(needed - 2, metric)).centers_KD
    )


def slow_far_apart(points, uniforms):
    """k-means++ by the book: the first point whose running sum of gaps exceeds the draw."""
    chosen = [int(uniforms[0] * len(points))]
    for uniform in uniforms[1:]:
        gaps = [min((p - points[c]).square().sum().item() for c in chosen) for p in points]
        target = uniform * sum(gaps)
        chosen.append(next(i for i in range(len(gaps)) if sum(gaps[: i + 1]) > target))
    return chosen


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_centres_start_far_apart_as_by_the_book(metric):
    points = torch.randn(50, 3, generator=_generator(2), dtype=torch.float64)
    if metric == "cosine":
        points = F.normalize(points, dim=1)
    uniforms = torch.rand(9, generator=_generator(4), dtype=torch.float64).tolist()
    start = kmeans_module.STARTS["kmeans++"](points, 9, _generator(4), metric)
    assert start.tolist() == slow_far_apart(points, uniforms)


def test_a_start_far_apart_meets_every_blob_where_a_random_one_misses_some():
    blobs = torch.eye(12).repeat_interleave(10, 0)
    points = blobs + 0.001 * torch.randn(blobs.shape, generator=_generator(0))
    met = {
        start: [len((draw(points, 12, _generator(s), "cosine") // 10).unique()) for s in range(5)]
        for start, draw in kmeans_module.STARTS.items()
    }
    assert met["kmeans++"] == [12] * 5 and max(met["random"]) < 12


def test_centres_of_every_third_point_label_all_points(backend):
    points = F.normalize(torch.randn(1000, 4, generator=_generator(2)), dim=1)
    made = kmeans(points, 5, _generator(1), KMeans(7, backend=backend, fit_every=3))
    fitted = kmeans(points[1::3], 5, _generator(1), KMeans(7, backend=backend))
    assert torch.equal(made.centers_KD, fitted.centers_KD)
    assert torch.equal(made.labels_N, (points @ made.centers_KD.T).argmax(1))


def test_many_clusters_are_fitted_on_more_points_than_asked_for():
    """A thousand points leave 32 for each of ten clusters at every third, not at every eighth."""
    points = torch.randn(1000, 4, generator=_generator(2))
    made = {n: kmeans(points, 10, _generator(1), KMeans(fit_every=n)) for n in (1, 3, 8)}
    assert torch.equal(made[3].centers_KD, made[8].centers_KD)
    assert not torch.equal(made[1].centers_KD, made[3].centers_KD)
    few = kmeans(points, 256, _generator(1), KMeans(fit_every=8))
    assert torch.equal(few.labels_N, kmeans(points, 256, _generator(1)).labels_N)


@pytest.mark.parametrize("num_clusters", [2, 129])
def test_the_number_of_threads_changes_no_bit(num_clusters):
    points = torch.randn(9600, 128, generator=_generator(3))
    threads, made = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            made.append(kmeans(points, num_clusters, _generator(), KMeans(3)))
    finally:
        torch.set_num_threads(threads)
    for other in made[1:]:
        assert torch.equal(made[0].labels_N, other.labels_N)
        assert torch.equal(made[0].centers_KD, other.centers_KD)


def test_a_missing_backend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(BackendError, match="pip install faiss-cpu"):
        kmeans(torch.eye(4), 2, _generator(), KMeans(backend="faiss"))
