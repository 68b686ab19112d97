"""Detectors of many products in one process: loaded when needed, forgotten by last use, over one backbone.

Bundles name their backbone; where two names stand for the same weights and description, the first one loaded serves
both. What counts against the bound is what a detector holds itself (learned tensors, text directions, memory banks),
not the backbone.

Cost: PromptAD over nano, from a local disk: 0.6 MB and 3 to 10 ms each; the first of a process also encodes the defect
words, about 1 s. A detector that was forgotten is loaded again.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zsad.backbone import Backbone
from zsad.backbone.load import CONFIG_FILE, NANO
from zsad.bundle import read_config, read_tensors
from zsad.detector import Detector, parse_tensors

log = logging.getLogger(__name__)

MAX_BYTES = 2**30


class DetectorCache:
    """Calibrated bundles by URL, at most `max_bytes` of them, but always the last one.

    Args:
        device: torch device of all.
        batch_size: images per forward pass of all.
        max_bytes: of what the detectors hold besides their backbone.
    """

    def __init__(self, *, device: str, batch_size: int, max_bytes: int = MAX_BYTES) -> None:
        self._device = device
        self._batch_size = batch_size
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, tuple[Detector, int]] = OrderedDict()
        self._names: dict[tuple[str, ...], str] = {}
        self.num_loaded = 0

    def get(self, url: str) -> Detector:
        """The detector of the bundle at `url`.

        Raises:
            ModelError: if it can't be loaded.
            StorageError: if it can't be read.
        """
        if url not in self._held:
            detector = self._load(url)
            self._held[url] = (detector, held_bytes(detector))
            self._forget()
        self._held.move_to_end(url)
        return self._held[url][0]

    def __len__(self) -> int:
        return len(self._held)

    def _load(self, url: str) -> Detector:
        config = read_config(url)
        identity = (config.backbone_sha256, config.precision, _description(config.backbone))
        name = self._names.get(identity, config.backbone)
        tensors = parse_tensors(read_tensors(url), url)
        detector = Detector(replace(config, backbone=name), tensors, device=self._device, batch_size=self._batch_size)
        self._names[identity] = name
        self.num_loaded += 1
        return detector

    def _forget(self) -> None:
        while len(self._held) > 1 and sum(size for _, size in self._held.values()) > self._max_bytes:
            url, (_, size) = self._held.popitem(last=False)
            log.info("forgot detector %s (%d bytes) to stay below %d bytes", url, size, self._max_bytes)


def _description(backbone: str) -> str:
    """What else than the weights decides a backbone's values: its folder's description; a name stands for itself."""
    path = (NANO if backbone == "nano" else Path(backbone)) / CONFIG_FILE
    return path.read_text() if path.is_file() else backbone


def held_bytes(detector: Detector) -> int:
    """Bytes of all tensors and arrays that a detector holds, each once, without its backbone."""
    seen: dict[int, int] = {}
    pending: list[Any] = [detector]
    visited: set[int] = set()
    while pending:
        one = pending.pop()
        if id(one) in visited or isinstance(one, Backbone | torch.nn.Module | str | int | float | type):
            continue
        visited.add(id(one))
        if isinstance(one, torch.Tensor):
            seen[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, np.ndarray):
            seen[id(one)] = one.nbytes
        else:
            pending += _parts(one)
    return sum(seen.values())


def _parts(one: Any) -> list[Any]:
    if isinstance(one, Mapping):
        return list(one.values())
    if isinstance(one, list | tuple | set | frozenset):
        return list(one)
    slots = [getattr(one, part.name) for part in fields(one)] if is_dataclass(one) else []
    return slots + list(getattr(one, "__dict__", {}).values())
