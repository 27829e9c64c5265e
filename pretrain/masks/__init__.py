"""Masks of the images: made, stored, read and measured."""
