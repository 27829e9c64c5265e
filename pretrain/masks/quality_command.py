"""What ``python -m pretrain.masks quality STORE ... --data ROOT --spec coco2017/val`` does."""

from collections.abc import Sequence
from pathlib import Path

from pretrain.masks.quality import COUNTS, REPORTED, Quality, quality_of
from pretrain.masks.quality_files import write_quality
from sslbench.command import require_place
from sslbench.datasets import DataRoots


def run_quality(
    stores: Sequence[Path],
    spec: str,
    roots: DataRoots,
    *,
    images: str = "",
    out: Path | None = None,
    workers: int = 0,
) -> str:
    """Measure stores against a labelled split; return the table for people.

    Args:
        images: what the masks were made of, where these are not the split's own images.
        out: folder for quality.json, quality.csv and the curve.

    Raises:
        ValueError: a store, the data or their fit is wrong; the message says the way out.
    """
    if out is not None:
        require_place("--out", out, is_folder=True)
    quality = quality_of(stores, spec, roots, masks_of=images, num_workers=workers)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_quality(out, quality)
    return table(quality)


def table(quality: Quality) -> str:
    """Sources x measures, shares in percent, segments as they are counted."""
    width = max(len(name) for name in quality.sources)
    titles = [*(name.replace("_", " ") for name in REPORTED), "ari of an equal grid"]
    lines = [f"{quality.spec}, {len(quality.names)} images, in %, segments counted"]
    lines.append("  ".join([" " * width, *titles]))
    for name, scores in quality.sources.items():
        values = [scores.mean(m) * (1 if m in COUNTS else 100) for m in REPORTED]
        values.append(100 * scores.equal_grid.mean("ari"))
        cells = [f"{v:{len(title)}.1f}" for v, title in zip(values, titles, strict=True)]
        lines.append("  ".join([f"{name:{width}}", *cells]))
    return "\n".join(lines)
