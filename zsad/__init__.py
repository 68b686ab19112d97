"""zsad: zero-shot anomaly detection for production images.

The public names are loaded on first use, so that `import zsad` costs nothing and the report can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsad.detector import Detector, Finding, load_detector
    from zsad.report.read import read_report

__version__ = "0.1.0"
__all__ = ["Detector", "Finding", "load_detector", "read_report", "__version__"]

_HOMES = {
    "Detector": "zsad.detector",
    "Finding": "zsad.detector",
    "load_detector": "zsad.detector",
    "read_report": "zsad.report.read",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zsad' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
