"""The agent's half: the way to the aggregator, who answers there, certificate, ledger. Never torch, pydicom, images."""
