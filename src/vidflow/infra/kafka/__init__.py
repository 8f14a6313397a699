"""Kafka: settings, clients, topics, offsets, publishing, dead letters.

Create clients in the process and thread that use them, after any fork.
"""
