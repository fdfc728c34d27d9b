"""The agent's commands: join, leave, and reading the ledger."""
