"""Turns log-odds into probabilities: prior correction and temperatures, fitted to one site's patients."""
