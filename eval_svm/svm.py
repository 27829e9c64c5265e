"""One linear SVM per class: the cost by cross-validation, then a fit on all training images.

Classes are solved in processes, not threads: liblinear draws from one generator per process, which
every fit seeds anew, so a class gets the same result alone, in a pool, or after a restart.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sslbench.metrics import average_precision, envelope_average_precision

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int8]  # one class: 1 present, -1 absent, 0 only difficult objects

SMALL_PROBLEM = 2_000_000  # numbers in the training features; below, processes cost more time


@dataclass(frozen=True)
class Solver:
    """How each SVM is found."""

    costs: tuple[float, ...]
    folds: int
    positive_weight: float
    tolerance: float
    max_iterations: int


@dataclass(frozen=True)
class ClassResult:
    """One class; precisions are fractions, None where the class was skipped."""

    name: str
    num_positives: int  # training images
    cost: float | None = None
    cross_validation: dict[str, float] | None = None  # cost -> mean average precision
    ap: float | None = None
    ap_envelope: float | None = None
    has_converged: bool = True
    skipped: str = ""  # why, for people


def evaluate_class(
    name: str,
    train_features: Features,
    train_labels: Labels,
    test_features: Features,
    test_labels: Labels,
    solver: Solver,
) -> ClassResult:
    """Choose the cost, fit, and rank the test images of one class.

    Training counts an image with only difficult objects as absent; testing leaves it out.
    """
    is_positive = train_labels == 1
    counted = test_labels != 0
    reason = _why_skipped(is_positive, test_labels[counted] == 1, solver)
    num_positives = int(is_positive.sum())
    if reason:
        return ClassResult(name, num_positives, skipped=reason)
    targets = np.where(is_positive, 1, -1)
    means = cross_validate(train_features, targets, solver) if len(solver.costs) > 1 else {}
    # max() returns the first of equals: the smallest cost, the strongest regularisation
    cost = max(means, key=means.__getitem__) if means else solver.costs[0]
    machine = fit(train_features, targets, cost, solver)
    scores = machine.decision_function(test_features[counted])
    truth = test_labels[counted] == 1
    return ClassResult(
        name,
        num_positives,
        cost=cost,
        cross_validation={str(cost): mean for cost, mean in means.items()},
        ap=average_precision(scores, truth),
        ap_envelope=envelope_average_precision(scores, truth),
        has_converged=bool(np.max(machine.n_iter_) < solver.max_iterations),
    )


def _why_skipped(train_is_positive: Any, test_is_positive: Any, solver: Solver) -> str:
    needed = solver.folds if len(solver.costs) > 1 else 1
    for what, count in (
        ("images that show it", int(train_is_positive.sum())),
        ("images without it", int((~train_is_positive).sum())),
    ):
        if count < needed:
            return f"{count} training {what}; {needed} are needed"
    return "" if test_is_positive.any() else "no test image shows it"


def cross_validate(features: Features, targets: Any, solver: Solver) -> dict[float, float]:
    """Mean average precision over stratified, unshuffled folds, by cost."""
    from sklearn.model_selection import StratifiedKFold

    folds = list(StratifiedKFold(solver.folds, shuffle=False).split(features, targets))
    means = {}
    for cost in solver.costs:
        found = []
        for kept, held in folds:
            machine = fit(features[kept], targets[kept], cost, solver)
            scores = machine.decision_function(features[held])
            found.append(average_precision(scores, targets[held] == 1))
        means[cost] = float(np.mean(found))
    return means


def fit(features: Features, targets: Any, cost: float, solver: Solver) -> Any:
    """Fit liblinear's dual l2-regularised squared-hinge SVM."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC
    from threadpoolctl import threadpool_limits

    machine = LinearSVC(
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        tol=solver.tolerance,
        C=cost,
        intercept_scaling=1,
        class_weight={1: solver.positive_weight, -1: 1},
        random_state=0,
        max_iter=solver.max_iterations,
    )
    # one BLAS thread: the sums, and so the last bits, must not depend on where the fit runs
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted in ClassResult instead
        return machine.fit(features, targets)


def evaluate_classes(
    names: Sequence[str],
    train: tuple[Features, Labels],
    test: tuple[Features, Labels],
    solver: Solver,
    on_result: Callable[[ClassResult], None],
) -> None:
    """Evaluate the named classes (columns of the label matrices), reporting each in order."""
    from joblib import Parallel, cpu_count, delayed

    columns = [(name, train[1][:, i], test[1][:, i]) for i, name in enumerate(names)]
    jobs = (
        delayed(evaluate_class)(name, train[0], own, test[0], others, solver)
        for name, own, others in columns
    )
    workers = 1 if train[0].size < SMALL_PROBLEM else cpu_count()
    for result in Parallel(n_jobs=min(workers, len(names) or 1), return_as="generator")(jobs):
        on_result(result)


def as_dict(result: ClassResult) -> dict[str, Any]:
    """Plain values for a JSON file."""
    return asdict(result)
