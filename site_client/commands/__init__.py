"""The command line, one file for each group of commands. Each command parses, calls one function, and answers."""
