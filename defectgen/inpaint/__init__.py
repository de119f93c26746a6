"""A place on a clean image, and a defect inpainted into it."""
