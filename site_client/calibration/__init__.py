"""From log-odds to probabilities: prior correction and temperatures, fitted to one site's patients."""
