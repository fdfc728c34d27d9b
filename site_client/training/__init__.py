"""Local training: from cached studies and a base model to trained weights and score histograms."""
