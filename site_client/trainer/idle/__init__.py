"""The idle gate: signals of the machine, the hospital's policy, and one decision four times a second."""
