"""YOLO11 per arm, on real held-out parts. The only folder that imports ultralytics (AGPL-3.0)."""
