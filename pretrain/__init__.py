"""Self-supervised pretraining: images -> checkpoint. Start reading at ``train.py``."""
