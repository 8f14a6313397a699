"""The worker: the process of one scenario. It reads the video, runs the model and sends what it saw. Start at main.py."""
