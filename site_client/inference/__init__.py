"""Predictions of a model, and their evaluation against labels."""
