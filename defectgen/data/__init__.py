"""Real defects and clean images: read, checked, split by group, cut to the budget."""
