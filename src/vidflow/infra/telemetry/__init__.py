"""Logs, metrics and outage messages."""
