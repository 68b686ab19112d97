"""Anomaly detection methods: one file each, all over any open_clip ViT."""

from zsad.methods.base import Method, Prediction
from zsad.methods.winclip import WinCLIP, WinCLIPConfig

METHODS: dict[str, tuple[type[WinCLIP], type[WinCLIPConfig]]] = {"winclip": (WinCLIP, WinCLIPConfig)}
"""Name in REFs and bundles -> (method, its config)."""

__all__ = ["METHODS", "Method", "Prediction", "WinCLIP", "WinCLIPConfig"]
