"""Commands that a person runs: `dev`, `run` and `dlq`."""
