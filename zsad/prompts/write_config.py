"""What the job that writes prompt banks is asked to do: one checked dataclass for command line, TOML and Python."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from zsad.errors import ConfigError, ErrorCode, ImageError, StorageError
from zsad.prompts.bank import file_at
from zsad.prompts.checks import check_language
from zsad.prompts.names import bank_files, object_name, one_line
from zsad.prompts.writers.base import WriteRequest
from zsad.prompts.writers.request import MAX_NOTES_CHARS

MAX_FILE_BYTES = 16 * 2**20
MAX_PRODUCTS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePromptsConfig:
    """Write a bank of descriptive prompts for every product.

    Attributes:
        output: folder or s3:// prefix for the banks, {product}.json each.
        objects: names of products with commas between them.
        objects_file: file with more of them, one a line.
        notes: file with notes on the products: text that goes for all, or a .json object of product and notes.
        llm: folder or name of a model for vLLM, openai:MODEL@BASE_URL, recorded:FILE, or builtin.
        review: also write review.html, a page of all banks for a person to read.
        cache: folder or s3:// prefix of finished banks; empty: _cache in the output.
        language: ISO 639-1 code of the language that prompts are written in.
        num_pairs: pairs of a good and a faulty look to ask for, 1 to 32.
        seed: of the model's sampling.
        backbone: whose text tower the banks are for, and which scores the phrases: nano, a folder, or open_clip's
            NAME/PRETRAINED.
        normals: folder or prefix with normal images that phrases must tell from the same with a fault; empty:
            procedural pairs.
        overwrite: also replace banks that a person has edited, and banks of earlier runs where the writer fails now.
        timeout_s: longest silence in a try of an endpoint, 0: 60 s; or without any finished product of vLLM, 0: 600 s.
        num_parallel: products that an endpoint is asked for at once.
        llm_revision: of a vLLM model that is no folder here.
        llm_python: interpreter with vLLM on the workers' disks; empty: the workers' own.
        llm_resource: custom Ray resource that marks the workers that can run vLLM; empty: any worker.
        num_llms: vLLM models loaded at a time.
        num_gpus_per_llm: GPUs of one; 0: it runs on CPUs.
    """

    output: str
    objects: str = ""
    objects_file: str = ""
    notes: str = ""
    llm: str = "builtin"
    review: bool = False
    cache: str = ""
    language: str = "en"
    num_pairs: int = 12
    seed: int = 0
    backbone: str = "nano"
    normals: str = ""
    overwrite: bool = False
    timeout_s: float = 0.0
    num_parallel: int = 8
    llm_revision: str = ""
    llm_python: str = ""
    llm_resource: str = ""
    num_llms: int = 1
    num_gpus_per_llm: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range before anything is touched."""
        for name in ("output", "llm", "backbone"):
            if not getattr(self, name).strip():
                raise ConfigError(f"--{name} is empty")
        if not self.objects.strip() and not self.objects_file:
            raise ConfigError("there are no products; give --objects or --objects-file")
        if not 0 <= self.timeout_s <= 86_400:
            raise ConfigError(f"--timeout-s {self.timeout_s}: give 0 to 86,400 seconds")
        if not 1 <= self.num_parallel <= 256:
            raise ConfigError(f"--num-parallel {self.num_parallel}: give 1 to 256")
        if self.num_llms < 1:
            raise ConfigError(f"--num-llms {self.num_llms}: at least 1")
        if self.num_gpus_per_llm < 0:
            raise ConfigError(f"--num-gpus-per-llm {self.num_gpus_per_llm}: must not be negative")
        WriteRequest(product="product", language=self.language, num_pairs=self.num_pairs, seed=self.seed)

    @property
    def cache_url(self) -> str:
        """Where finished banks are kept."""
        return self.cache or f"{self.output.rstrip('/')}/_cache"

    def requests(self) -> list[tuple[str, WriteRequest]]:
        """File of the bank, and what to ask, for every product in the order given.

        Raises:
            ConfigError: if a file can't be used, a product has no name, or two would share a file.
            StorageError: if storage fails.
        """
        check_language(self.language)
        products = [part.strip() for part in self.objects.split(",")]
        if self.objects_file:
            products += [line.strip() for line in _text(self.objects_file, "--objects-file").splitlines()]
        named = [product for product in products if product]
        if not 1 <= len(named) <= MAX_PRODUCTS:
            raise ConfigError(f"{len(named):,} products; a run takes 1 to {MAX_PRODUCTS:,}")
        notes_of = self._notes()
        return [(file, self._request(product, notes_of(product))) for file, product in bank_files(named).items()]

    def _request(self, product: str, notes: str) -> WriteRequest:
        return WriteRequest(
            product=object_name(product),
            notes=one_line(notes, MAX_NOTES_CHARS),
            language=self.language,
            num_pairs=self.num_pairs,
            seed=self.seed,
        )

    def _notes(self) -> Callable[[str], str]:
        """From a product, as a person typed it, to its notes.

        Raises:
            ConfigError: if the file of notes can't be used.
        """
        if not self.notes:
            return lambda _: ""
        text = _text(self.notes, "--notes")
        if not self.notes.endswith(".json"):
            return lambda _: text
        try:
            stored = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--notes {self.notes}: not JSON ({type(error).__name__})") from error
        if not isinstance(stored, dict) or not all(isinstance(note, str) for note in stored.values()):
            raise ConfigError(f"--notes {self.notes}: it must be an object of products and their notes, both text")
        named = {object_name(product): note for product, note in stored.items()}
        return lambda product: named.get(object_name(product), "")


def _text(url: str, option: str) -> str:
    """A text file of the user's.

    Raises:
        ConfigError: if there is none, it is too large, or it is not UTF-8.
        StorageError: if storage fails.
    """
    store, key = file_at(url)
    try:
        return store.get(key, max_bytes=MAX_FILE_BYTES).decode()
    except StorageError as error:
        if error.code != ErrorCode.MISSING:
            raise
        raise ConfigError(f"{option} {url}: there is no such file") from error
    except ImageError as error:  # the storage's own word for an object that is too large
        raise ConfigError(f"{option} {url}: larger than {MAX_FILE_BYTES:,} bytes") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{option} {url}: not UTF-8 text") from error
