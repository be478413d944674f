"""What computes a network: torch, or ONNX Runtime or OpenVINO on a copy of it in ONNX."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import BundleError, UsageError, listed, size_text
from medkit.inference.onnx_network import ONNX, OnnxNetwork, converted
from medkit.machine.signal_stack import same_signal_stack

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger("medkit")

TORCH, ONNXRUNTIME, OPENVINO, AUTO = "torch", "onnxruntime", "openvino", "auto"
PRECISIONS: Mapping[str, tuple[str, ...]] = {ONNXRUNTIME: ("float32",), OPENVINO: ("float32", "bf16")}
"""Backend besides torch -> what it computes with on a CPU, the preferred one first."""
_EXTRAS = {ONNXRUNTIME: "onnx", OPENVINO: "openvino"}
"""Backend -> the extra that installs it."""
_OPENVINO_TYPES = {"float32": "f32", "bf16": "bf16"}


def missing_package(backend: str) -> str | None:
    """Return the package that a backend needs and that is not installed; None if there is none."""
    names = () if backend == TORCH else (backend, *ONNX)
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def require(backend: str, device: torch.device) -> None:
    """Raise UsageError unless a backend is installed and computes on the device."""
    if backend == TORCH:
        return
    if name := missing_package(backend):
        why = "is not installed" if name == backend else f"needs {name}, which is not installed"
        raise UsageError(f"--backend {backend}: {why}: pip install 'medkit[{_EXTRAS[backend]}]'")
    if device.type != "cpu":
        raise UsageError(f"--backend {backend}: computes on the CPU, with --device cpu; got {device}")


def precision_of(backend: str, asked: str) -> str:
    """Return what a backend besides torch computes with for `--precision`. Raises UsageError if it cannot."""
    if asked == "auto":
        return PRECISIONS[backend][0]
    if asked not in PRECISIONS[backend]:
        raise UsageError(f"--backend {backend}: computes with {listed(list(PRECISIONS[backend]))}, not with {asked}")
    return asked


class CompiledNetwork:
    """A network that another library than torch computes; called by inferers like the network itself.

    It is converted, and the copy compared with it, when it is called with a size that no copy takes yet.
    """

    def __init__(self, network: torch.nn.Module, backend: str, precision: str) -> None:
        self.network, self.backend, self.precision = network, backend, precision
        self._session: _Session | None = None
        self._shape: tuple[int, ...] | None = None
        """(C, ...) that the session takes; None: any that the network takes."""
        self._one_by_one = True
        """Whether the session takes one image at a time."""
        self._lock = threading.Lock()

    def __call__(self, image: torch.Tensor, *more: Any, **settings: Any) -> Any:
        """Return the network's answer to an image, (N, C, ...), in float32. Raises BundleError if it has others."""
        import numpy as np
        import torch
        from monai.utils import convert_to_dst_type

        if more or any(value is not None for value in settings.values()):
            raise BundleError(f"--backend {self.backend}: its inferer hands its network more than an image")
        plain = image.as_tensor() if hasattr(image, "as_tensor") else image
        with self._lock:
            session = self._for(tuple(plain.shape[1:]))
            values = plain.detach().to("cpu", torch.float32).contiguous().numpy()
            parts = values[:, None] if self._one_by_one and len(values) > 1 else [values]
            answers = [session(part) for part in parts]
        answer = torch.from_numpy(answers[0] if len(answers) == 1 else np.concatenate(answers))
        return convert_to_dst_type(answer, image, dtype=torch.float32)[0]

    def _for(self, shape: tuple[int, ...]) -> _Session:
        """Return a session for images (C, ...)."""
        if self._session is not None and self._shape in (None, shape):
            return self._session
        if isinstance(self.network, OnnxNetwork):
            self._session = session_of(self.backend, self.network.path, self.precision)
            return self._session
        # compared in float32: what the precision changes is no fault of the copy
        copy = converted(self.network, shape, lambda content: session_of(self.backend, content, "float32"))
        if self._shape is not None:
            size = size_text(shape[1:])
            log.debug("%s: the network is converted anew for %s voxels", self.backend, size)
        self._session = session_of(self.backend, copy.content, self.precision)
        self._shape, self._one_by_one = copy.shape, not copy.batches
        return self._session


class _Session:
    """A network in ONNX that is loaded; called with an image, (N, C, ...) float32."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the network's answer."""
        raise NotImplementedError


class _OnnxRuntime(_Session):
    def __init__(self, model: bytes | Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # it keeps what the largest image took
        for kind in ("intra", "inter"):  # threads that wait sleep, see medkit.machine.threads
            options.add_session_config_entry(f"session.{kind}_op.allow_spinning", "0")
        content = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, image: np.ndarray) -> np.ndarray:
        answer: np.ndarray = self.session.run(None, {self.name: image})[0]
        return answer


class _OpenVino(_Session):
    def __init__(self, model: bytes | Path, precision: str, threads: int) -> None:
        import openvino

        core = openvino.Core()
        read = core.read_model(model if isinstance(model, bytes) else str(model))
        settings = {
            "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # other processes may compute on the same processors
        }
        with same_signal_stack():
            self.request = core.compile_model(read, "CPU", settings).create_infer_request()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        import numpy as np

        # the tensor belongs to the request, which the next call fills anew
        return np.array(self.request.infer([image])[0], np.float32)


def session_of(backend: str, model: bytes | Path, precision: str) -> _Session:
    """Load a network in ONNX, from its content or its file, with as many threads as torch has. Raises BundleError."""
    import torch

    threads = torch.get_num_threads()
    try:
        if backend == OPENVINO:
            return _OpenVino(model, precision, threads)
        return _OnnxRuntime(model, threads)
    except Exception as error:  # each library has errors of its own
        text = " ".join(str(error).split())[:300]
        raise BundleError(f"--backend {backend}: cannot load the network in ONNX: {text}") from error
