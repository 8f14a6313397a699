"""Pure decisions: no I/O, no clock, no randomness. Callers pass in the values that these would provide."""
