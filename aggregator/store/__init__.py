"""All SQL of the aggregator: `engine` (connection, transition), `sites`, `people`, `runs`, `rounds`."""

from aggregator.store.engine import Change, Store, guarded, open_store, record, transition

__all__ = ["Change", "Store", "guarded", "open_store", "record", "transition"]
