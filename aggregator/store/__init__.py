"""All SQL of the aggregator, and all files it stores. `engine` has the connection and the guarded transition."""

from aggregator.store.engine import OPERATOR, Cause, Change, Store, guarded, open_store, record, transition

__all__ = ["OPERATOR", "Cause", "Change", "Store", "guarded", "open_store", "record", "transition"]
