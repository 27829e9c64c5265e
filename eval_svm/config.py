"""The VOC07 SVM protocol as values; the defaults are the paper's. No torch."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from sslbench.config import FrozenConfig


class SVMConfig(FrozenConfig):
    """Linear SVMs on the last map of a frozen trunk, one per class (CYBORGS App. B)."""

    task: str = Field(default="voc07_svm", min_length=1)  # id in results and tables
    train: str = "voc2007/trainval"
    test: str = "voc2007/test"
    branch: str = Field(default="online", min_length=1)  # online, target, or a prefix
    resize: int = Field(default=256, gt=0)  # pixels of the shorter side
    crop: int = Field(default=224, ge=32)  # pixels of the centre square
    grid: int = Field(default=2, gt=0)  # the last map is averaged to grid x grid cells
    batch_size: int = Field(default=32, gt=0)  # hashed: it moves the last bits of the features
    costs: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    folds: int = Field(default=3, ge=2)
    positive_weight: float = Field(default=2.0, gt=0)  # of present images; absent ones count 1
    tolerance: float = Field(default=1e-4, gt=0)
    max_iterations: int = Field(default=2000, gt=0)

    @field_validator("costs")
    @classmethod
    def _costs_are_positive(cls, costs: tuple[float, ...]) -> tuple[float, ...]:
        if not costs or any(cost <= 0 for cost in costs):
            raise ValueError("costs must be one or more positive numbers")
        if sorted(set(costs)) != list(costs):
            raise ValueError("costs must ascend: of equally good ones the smallest is taken")
        return costs

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} does not fit into resize {self.resize}")
        return self

    def departures_from_protocol(self) -> tuple[str, ...]:
        """Footnotes of a result: what differs from the published protocol."""
        official = SVMConfig()
        names = [
            name
            for name in SVMConfig.model_fields
            if name not in ("task", "branch", "batch_size")
            and getattr(self, name) != getattr(official, name)
        ]
        if not names:
            return ()
        shown = ", ".join(f"{name} {_brief(getattr(self, name))}" for name in names)
        return (f"departs from {official.task} in {shown}",)


def _brief(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
