"""Whether CUDA can be used, and whether it failed. Imports neither onnxruntime nor torch, since the runner checks its device itself."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path
from typing import Final, Literal

from vidflow.domain.device import CPU, Device, DeviceKind, resolve_device
from vidflow.domain.errors import Unavailable, format_install_hint

Library = Literal["onnxruntime", "torch"]
CUDA_FILES: Final[dict[Library, str]] = {
    "onnxruntime": "capi/libonnxruntime_providers_cuda.so",
    "torch": "lib/libtorch_cuda.so",
}
"""What each library has in its folder if it is built with CUDA."""
EXTRAS: Final[dict[Library, str]] = {"onnxruntime": "cuda", "torch": "cuda-torch"}
DRIVER: Final = "libcuda.so.1"
FAILURE: Final = re.compile(
    r"\b(CUDA|CUDNN|CUBLAS)\w* (failure|error|out of memory)|Failed to allocate memory for requested buffer",
    re.IGNORECASE,
)
"""How onnxruntime and torch report a failure of the GPU, or a lack of its memory."""


def choose_device(requested: Device, library: Library) -> Device:
    """Return the device for a model that `library` runs. Raises DeviceUnavailable if CUDA is requested and cannot be used."""
    if requested.kind is DeviceKind.CPU:
        return CPU
    return resolve_device(requested, find_library_fault(library) or find_driver_fault(requested.index))


def find_fault(index: int) -> str | None:
    """Return why no library can use a CUDA device, with the next step; None if one may be able to."""
    faults = [find_library_fault(library) for library in CUDA_FILES]
    return find_driver_fault(index) or (None if None in faults else faults[0])


def raise_gpu_failure(device: Device, error: Exception, reason: str) -> None:
    """Raise Unavailable for an error of the GPU itself, such as a lack of memory. Return for errors of the model or the frame.

    `reason`: the library's reason in one line.
    """
    if device.kind is DeviceKind.CUDA and FAILURE.search(str(error)):
        raise Unavailable(
            f"{device} failed ({reason}). nvidia-smi shows its state and what uses its memory."
        ) from error


def find_library_fault(library: Library) -> str | None:
    """Return why a library cannot use CUDA, with the next step; None if it is built with CUDA."""
    spec = importlib.util.find_spec(library)
    if spec is not None and spec.origin is not None and (Path(spec.origin).parent / CUDA_FILES[library]).is_file():
        return None
    hint = format_install_hint(EXTRAS[library])
    return f"{library} with CUDA is not installed. {hint}, in an environment without the package onnxruntime."


def find_driver_fault(index: int) -> str | None:
    """Return why the driver has no CUDA device with this index, with the next step; None if it has it."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return (
            f"this machine has no CUDA driver ({DRIVER}). Install NVIDIA's driver; a container must be given the GPU "
            "(docker run --gpus)."
        )
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"the CUDA driver reports error {code} ({_describe_error(driver, code)}). See whether nvidia-smi works."
    if index >= count.value:
        available = ", ".join(f"cuda:{number}" for number in range(count.value))
        return f"this machine has no such GPU. Available: {available or 'none'}."
    return None


def _describe_error(driver: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(text))
    return (text.value or b"unknown").decode(errors="replace")
