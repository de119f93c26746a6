"""Labels from what changed, screening, and the YOLO data set on disk."""
