"""Whether the synthetic data helps, over budgets of real defects and draws of them."""
