"""The class-conditioned generator: its windows, training and two pipelines."""
