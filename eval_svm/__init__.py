"""Checkpoint -> VOC07 mAP of linear SVMs on frozen features."""
