"""The command line, one file a group; `cli` imports a file when its command runs."""
