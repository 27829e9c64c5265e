"""The pretraining methods. A new one is a module, a line here and a config class in the union."""

# name -> builder(PretrainConfig, trunk to start from or None) -> Method
METHODS = {"cyborgs": "pretrain.methods.cyborgs:build"}
