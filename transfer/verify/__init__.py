"""Any converted weights against their checkpoint, and a user's Detectron2 YAML against the weights.

``python -m transfer verify WEIGHTS --against CHECKPOINT [--config YAML]``
"""

from transfer.verify.verification import Verification, verify

__all__ = ["Verification", "verify"]
