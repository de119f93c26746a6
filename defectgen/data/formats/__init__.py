"""Annotation formats: what a label file says, as annotations and problems."""
