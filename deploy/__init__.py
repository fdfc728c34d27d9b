"""The demo and the simulation, which run from a checkout. No part of the wheel."""
