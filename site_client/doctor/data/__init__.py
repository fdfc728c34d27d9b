"""The trainer's half: export, labels, decoders, disk, signals. Without grpc and without a network socket."""
