"""A synthetic CT scanner and its patients, for tests, demos and benchmarks.

A result on these patients is never clinical evidence, and every report about them says so.
"""
