"""The agent's half: connection, enrolment, ledger, bandwidth. Without torch, pydicom and images."""
