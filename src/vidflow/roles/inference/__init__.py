"""The inference process: one model, loaded once, for all workers of a runner that use it. The runner starts and watches it."""
