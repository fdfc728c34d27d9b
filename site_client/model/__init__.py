"""The network architectures, their inputs, and their initial weights."""
