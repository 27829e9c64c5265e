"""Ask Detectron2 itself for the names in transfer/detectron2_names.txt and detectron2_keys.txt.

python -m tests.transfer.dump_detectron2_names     (needs Detectron2; writes both files)
"""

from collections.abc import Iterator
from typing import Any

from transfer.detectron2_names import KEYS_PATH, NAMES_PATH, Shape

COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
YAMLS = {
    "c4": "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
    "fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
}
TRUNKS = [("c4", 50), ("c4", 101), ("fpn", 18), ("fpn", 34), ("fpn", 50), ("fpn", 101)]


def trunk(layout: str, depth: int) -> dict[str, Shape]:
    """Names and shapes of a whole detector's tensors, without its heads and its pyramid.

    FrozenBatchNorm2d keeps no counter, so this is what pretrained weights consist of.
    """
    import torch
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config(YAMLS[layout])
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = depth
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    with torch.no_grad():
        state = build_model(cfg).state_dict()
    heads = ("proposal_generator.", "roi_heads.box", "backbone.fpn_", "pixel_")
    return {n: tuple(v.shape) for n, v in state.items() if not n.startswith(heads)}


def keys() -> list[str]:
    """Dotted names of everything in Detectron2's default configuration that holds a value."""
    from detectron2.config import get_cfg

    return sorted(_leaves(get_cfg(), ""))


def _leaves(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def main() -> None:
    head = f"# Detectron2 {COMMIT}; written by python -m tests.transfer.dump_detectron2_names"
    lines = [head]
    for layout, depth in TRUNKS:
        lines.append(f"{layout} {depth}")
        for name, shape in trunk(layout, depth).items():
            lines.append(f"{name} {'x'.join(map(str, shape))}")
    NAMES_PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")
    KEYS_PATH.write_text("\n".join([head, *keys()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
