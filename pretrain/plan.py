"""What one epoch does."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch does."""

    refresh_masks: bool  # make a new mask generation before the epoch
    contrast: bool  # mask-dependent contrastive loss on
    clustering_weight: float  # 0 = no clustering loss, not computed
    clusters: tuple[int, int]  # range of K in the clustering loss, both ends included
    separate: bool = False  # contrast and clustering in updates of their own

    @property
    def updates(self) -> "tuple[EpochPlan, ...]":
        """The updates of one step, in order; each has views of its own."""
        if not (self.separate and self.contrast and self.clustering_weight > 0):
            return (self,)
        return replace(self, clustering_weight=0.0), replace(self, contrast=False)


EVERY_EPOCH_ALIKE = EpochPlan(  # of a method without masks
    refresh_masks=False, contrast=True, clustering_weight=0.0, clusters=(0, 0)
)
