"""The commands of hemofed-custodian."""
