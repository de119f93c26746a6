"""Rare-defect images and YOLO labels from a few real defects, and the proof whether they help."""

__version__ = "0.1.0"
