"""Scenes as a VOC devkit: one XML per picture, ImageSets/Main with per-class lists."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from sslbench.scenes.contours import bounds
from sslbench.scenes.drawing import SHAPE_NAMES, Instance, Scene

DIFFICULT_VISIBLE = 0.55  # of an object; VOC does not count what is hidden more
DIFFICULT_PIXELS = 90

Labels = list[int]


def is_difficult(instance: Instance) -> bool:
    """Tell what VOC does not count: mostly hidden, or tiny."""
    return instance.visible < DIFFICULT_VISIBLE or int(instance.mask_HW.sum()) < DIFFICULT_PIXELS


def labels_of(instances: Iterable[Instance]) -> Labels:
    """Return per class 1 (present), 0 (only difficult), -1 (absent)."""
    labels = [-1] * len(SHAPE_NAMES)
    for instance in instances:
        labels[instance.shape] = max(labels[instance.shape], 0 if is_difficult(instance) else 1)
    return labels


def write_xml(path: Path, scene: Scene) -> None:
    """Write one annotation file."""
    height, width, depth = scene.pixels_HW3.shape
    objects = "".join(_object(instance) for instance in scene.instances)
    path.write_text(
        f"<annotation>\n\t<folder>VOC2007</folder>\n\t<filename>{path.stem}.jpg</filename>\n"
        "\t<source>\n\t\t<database>sslbench scenes</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n"
        f"\t\t<depth>{depth}</depth>\n\t</size>\n\t<segmented>0</segmented>\n"
        f"{objects}</annotation>\n"
    )


def _object(instance: Instance) -> str:
    x0, y0, x1, y1 = bounds(instance.mask_HW)
    height, width = instance.mask_HW.shape
    truncated = int(x0 == 0 or y0 == 0 or x1 == width or y1 == height)
    # The devkit counts pixels from 1 and includes the last one.
    edges = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
    box = "".join(f"\t\t\t<{edge}>{value}</{edge}>\n" for edge, value in edges.items())
    return (
        f"\t<object>\n\t\t<name>{SHAPE_NAMES[instance.shape]}</name>\n"
        f"\t\t<pose>Unspecified</pose>\n\t\t<truncated>{truncated}</truncated>\n"
        f"\t\t<difficult>{int(is_difficult(instance))}</difficult>\n"
        f"\t\t<bndbox>\n{box}\t\t</bndbox>\n\t</object>\n"
    )


def write_lists(folder: Path, splits: Mapping[str, Mapping[str, Labels]]) -> None:
    """Write ImageSets/Main.

    Args:
        splits: split -> file stem -> labels per class.
    """
    for split, rows in splits.items():
        (folder / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in sorted(rows)))
        for index, name in enumerate(SHAPE_NAMES):
            lines = (f"{stem} {rows[stem][index]:2d}\n" for stem in sorted(rows))
            (folder / f"{name}_{split}.txt").write_text("".join(lines))
