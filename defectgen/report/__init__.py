"""report.html: what was made, what it is worth and why, on one page that needs nothing else."""
