"""The pretraining methods. A new one is a module, a line here and a config class in the union."""

METHODS = {"cyborgs": "pretrain.methods.cyborgs:build"}  # name -> builder(PretrainConfig) -> Method
