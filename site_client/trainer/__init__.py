"""The trainer: a service that supervises a worker, and the idle gate that says when the worker may run."""
