"""A real RTSP server for tests, started as a process of the system's Python."""
