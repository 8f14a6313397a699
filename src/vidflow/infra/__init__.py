"""The outside world, one module a thing: thin, typed, without decisions."""
