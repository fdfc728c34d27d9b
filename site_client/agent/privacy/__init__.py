"""The privacy that this hospital's patients have given up: a ledger of charges, and what they add up to."""
