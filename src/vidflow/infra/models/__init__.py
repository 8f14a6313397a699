"""Models: what they are called, what their files say, and how a worker runs them. Start at registry.py.

registry.py, spec.py, files.py and onnx_metadata.py import no numpy, torch or onnxruntime, so that the api can name and
check a model without them; each of the other modules needs an extra and is imported only by registry.load.
"""
