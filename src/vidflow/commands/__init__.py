"""Commands that a person runs once: `dev`, `run` and `dlq`."""
