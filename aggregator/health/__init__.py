"""Answers to monitoring, without a log-in: whether a running aggregator is alive and ready, and its figures.

Nothing here names a hospital or says anything about patients or models.
"""
