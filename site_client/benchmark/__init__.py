"""Every arm of the paper's table, trained and evaluated on the same patients."""
