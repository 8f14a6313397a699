"""Names, specs, files and runtimes of models. Start reading at registry.py.

registry.py, bundle.py, spec.py, files.py, paths.py, plugin.py and onnx_metadata.py import no numpy, torch or onnxruntime, so that the api
can list and check models without them. The other modules need an extra and are imported only by registry.load.
"""
