"""The trainer's checks that need PyTorch, in a process of their own."""
