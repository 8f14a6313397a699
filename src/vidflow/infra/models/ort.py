"""onnxruntime with its telemetry off. Every module that needs onnxruntime imports it from here."""

from __future__ import annotations

import os

# Read when the library loads. `disable_telemetry_events()` alone comes too late: by then onnxruntime has written a device id
# to the user's cache folder and started its uploader.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
