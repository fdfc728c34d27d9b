"""hemofed-custodian: the small program that signs rosters and plans, on a machine of its own, without a network.

It needs the base install alone. Neither `serve` nor any other program imports it (tests/test_architecture.py).
"""
