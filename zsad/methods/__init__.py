"""Anomaly detection methods: one file each, all over any open_clip ViT."""

from typing import Any

from zsad.methods.alfa import Alfa, AlfaConfig
from zsad.methods.base import FewShot, Method, Prediction, Subject
from zsad.methods.dapo import DAPO, DAPOConfig
from zsad.methods.faprompt import FAPrompt, FAPromptConfig
from zsad.methods.promptad import PromptAD, PromptADConfig
from zsad.methods.winclip import WinCLIP, WinCLIPConfig

METHODS: dict[str, tuple[Any, Any]] = {
    "winclip": (WinCLIP, WinCLIPConfig),
    "alfa": (Alfa, AlfaConfig),
    "faprompt": (FAPrompt, FAPromptConfig),
    "dapo": (DAPO, DAPOConfig),
    "promptad": (PromptAD, PromptADConfig),
}
"""Name in REFs and bundles -> (method, its config)."""

__all__ = [
    "METHODS",
    "Alfa",
    "AlfaConfig",
    "DAPO",
    "DAPOConfig",
    "FAPrompt",
    "FAPromptConfig",
    "FewShot",
    "Method",
    "Prediction",
    "PromptAD",
    "PromptADConfig",
    "Subject",
    "WinCLIP",
    "WinCLIPConfig",
]
