"""The worker: the process of one scenario. It reads the video, runs the model and sends the results. Start reading at main.py."""
