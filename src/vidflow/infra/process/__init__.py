"""The current process: signals, the parent process, memory, the health file, and crash points for tests."""
