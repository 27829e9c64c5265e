"""The online probe: k-NN on labelled images every few epochs of a run that it cannot change.

Its row bears the number of the epoch's last step, which the saved epoch includes: a resume keeps
the row, or finds it missing and probes the weights that it starts from.
"""

from dataclasses import dataclass

from pretrain.config import PretrainConfig
from sslbench import dist
from sslbench.datasets import DataRoots
from sslbench.knn import Vote
from sslbench.log import RunLog, read_metrics
from sslbench.probe import KNNProbe
from sslbench.resnet import ResNet

METRIC = "knn_mAP"  # percent
RESIZE = 256 / 224  # of the crop's side, to which the shorter side is brought before


@dataclass(frozen=True)
class OnlineProbe:
    """What is probed, and after which epochs."""

    knn: KNNProbe
    every_epochs: int
    last_epoch: int

    def is_due(self, epoch: int) -> bool:
        """Tell whether to probe after ``epoch``; 0 is before the first."""
        return epoch > 0 and (epoch % self.every_epochs == 0 or epoch == self.last_epoch)

    def record(
        self, backbone: ResNet, epoch: int, step: int, num_workers: int, log: RunLog
    ) -> None:
        """Measure, and write a row of its own.

        Args:
            step: the epoch's last, counted from 0.
        """
        value = self.knn.measure(backbone, num_workers)
        log.scalars(step, epoch=epoch, **{METRIC: value})
        log.info(f"epoch {epoch}: {METRIC} {value:.2f}")


def load_probe(cfg: PretrainConfig, roots: DataRoots) -> OnlineProbe | None:
    """Read the labels, if the config asks for a probe.

    Raises:
        DataError: they are not there, or cannot be used.
    """
    probe = cfg.probe
    if probe.every_epochs == 0:
        return None
    knn = KNNProbe.load(
        probe.train,
        probe.test,
        roots,
        resize=round(RESIZE * cfg.crop_size),
        crop=cfg.crop_size,
        vote=Vote(probe.neighbours, probe.temperature),
    )
    return OnlineProbe(knn, probe.every_epochs, cfg.schedule.epochs)


def is_recorded(log: RunLog, step: int) -> bool:
    """Tell on every process whether the log already holds the probe after ``step``."""
    rows = read_metrics(log.metrics_path) if dist.is_main() else []
    return dist.any_true(any(METRIC in row and row["step"] == step for row in rows))
