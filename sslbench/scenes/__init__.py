"""Built-in data: small drawn scenes in the real layouts of VOC, COCO and LVIS."""

from sslbench.scenes.generate import SceneSettings, generate

__all__ = ["SceneSettings", "generate"]
