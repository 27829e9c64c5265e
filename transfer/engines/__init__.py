"""Detection engines: interchangeable builders of model, samples and predictions behind one trainer.

A new engine is one entry in ``ENGINES``.
"""

ENGINES = {
    "detectron2": "transfer.engines.detectron2:Detectron2Engine",
    "torchvision": "transfer.engines.torchvision:TorchvisionEngine",
}
