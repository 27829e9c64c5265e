"""Checkpoint -> numbers: conversion, detection and instance segmentation."""
