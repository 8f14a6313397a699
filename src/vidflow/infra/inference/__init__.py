"""Both ends of the connection between workers and a shared inference process: messages, shared memory, the client."""
