"""Alerts: conditions that need a person, told once by mail and webhook, and once more when they are over."""
