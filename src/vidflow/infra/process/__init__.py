"""This process and its machine: signals, the parent process, memory, the health file, crash points for tests."""
