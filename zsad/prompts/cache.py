"""Finished banks by what they were made from, on any storage: the same question to the same model costs nothing twice.

The key is the SHA-256 of everything that decides a bank: the request, its version, writer, model and revision, the
checks' version, and the backbone and images that scored the phrases. Banks that fell back are never kept, so the next
run asks again. An entry that can't be read counts as missing.

Cost: one small object a product, read and written once.
"""

import json
import logging
from dataclasses import asdict
from hashlib import sha256

from zsad.errors import ConfigError
from zsad.prompts.bank import PromptBank, bank_bytes, read_bank_in
from zsad.prompts.clip_scores import Reader
from zsad.prompts.verdicts import CHECKS_VERSION
from zsad.prompts.writers.base import Writer, WriteRequest
from zsad.prompts.writers.request import REQUEST_VERSION
from zsad.storage import Store

log = logging.getLogger(__name__)


def cache_key(request: WriteRequest, writer: Writer, reader: Reader) -> str:
    """The key of the bank that `writer` and `reader` would make for `request`, 64 hex digits."""
    parts = {
        "request": asdict(request),
        "request_version": REQUEST_VERSION,
        "checks_version": CHECKS_VERSION,
        "writer": [writer.name, writer.model, writer.revision],
        "backbone": reader.backbone.sha256,
        "images": reader.source.identity,
    }
    return sha256(json.dumps(parts, sort_keys=True).encode(errors="backslashreplace")).hexdigest()


def find(cache: Store, key: str) -> PromptBank | None:
    """The bank kept under `key`, if there is a sound one.

    Raises:
        StorageError: if storage fails.
    """
    name = _name(key)
    if not cache.exists(name):
        return None
    try:
        return read_bank_in(cache, name)
    except ConfigError as error:
        log.warning("the cached %s; it is made anew", error)
        return None


def keep(cache: Store, key: str, bank: PromptBank) -> None:
    """Keep a bank under `key`.

    Raises:
        StorageError: if storage fails.
    """
    cache.put(_name(key), bank_bytes(bank))


def _name(key: str) -> str:
    return f"{key[:2]}/{key}.json"
