"""The trainer's half: export, labels, decoders, disk, signals. Never grpc, never a network socket."""
