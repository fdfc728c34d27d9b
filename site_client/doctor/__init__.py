"""`hemofed-site doctor`: one preflight. Each line is green, red with the exact fix, or grey: not checked, and why.

    network/   the agent's checks; they run as the agent's user, without torch and pydicom
    data/      the trainer's checks; they run as the trainer's user, without grpc, PyTorch and a network socket
    compute/   those of the trainer's checks that need PyTorch; as the trainer's user, too
    units      the two systemd units as they are installed, drop-ins included
    command    runs the halves in processes of their own, as the units' users when root calls it
    bundle     all of the above and the settings, redacted, in one file for support

Nothing is changed. Six messages may leave, and only while no agent runs: a request for the roster, and five that
measure the line with bytes that every machine can compute. The ledger records them like all others.
"""
