"""A real RTMP server for tests (nginx with its RTMP module), somebody who sends a stream to it, and servers that refuse."""
