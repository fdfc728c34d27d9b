"""`hemofed-site doctor`: one preflight. Every line is green, red with the exact fix, or grey: not looked at, and why.

    network/   what the agent meets: runs as the agent's user, without torch and pydicom
    data/      what the trainer meets: runs as the trainer's user, without grpc and without a network socket
    units      the two systemd units as they are installed, drop-ins included
    command    runs the halves in processes of their own, as the units' users when root asks
    bundle     everything above and the settings, redacted, in one file for whoever helps

Nothing is changed. Six messages may leave, and only while no agent runs: a request for the roster, and five that
measure the line with bytes everybody can compute; in the ledger like every other.
"""
