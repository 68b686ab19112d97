"""One run, many products: which detector scores which object, by partition fields in the references.

`--partition '{product}/' --detector 's3://models/{product}/'` gives every product its own bundle; `--object`,
`--prompts` and `--normals` may hold fields too. The values of the fields are found first, by listing folders where the
fields are whole levels of the key, else by listing the input; then the bundles are settled, and what they are goes
into the run's settings, so that a changed bundle of one product is refused instead of mixed in. `detectors.json` of a
run keeps the result: values of the fields -> bundle, or why there is none.

Keys are hostile. A value may be any name without `/`, so it never stands in the scheme or bucket of a URL, names made
of dots only are refused, and `file://` URLs get it escaped.

Cost: one LIST request for each folder above the last field; a dictionary look-up for each object.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from zsad.errors import ConfigError
from zsad.images import Preprocess
from zsad.partition import PartitionTemplate
from zsad.report.manifest import Lister, ListingOptions, iter_listing
from zsad.storage import Store

MAX_DETECTORS = 20_000
_FIELD = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Values = tuple[str, ...]


def field_names(text: str) -> tuple[str, ...]:
    """Fields such as {product} that a reference holds, each once."""
    return tuple(dict.fromkeys(_FIELD.findall(text)))


def filled(text: str, values: Mapping[str, str]) -> str:
    """A reference with the fields' values in their places.

    Raises:
        ConfigError: if a value can't be a part of a URL.
    """
    for value in values.values():
        if not value.strip(".") or _CONTROL.search(value):
            raise ConfigError(
                f"{value!r} can't be a part of a reference: it is made of dots or holds control characters"
            )
    is_escaped = text.startswith("file://")
    return _FIELD.sub(lambda found: quote(values[found[1]], safe="") if is_escaped else values[found[1]], text)


def check_reference(text: str, option: str, template: PartitionTemplate | None) -> None:
    """Refuse fields that the partition template has not, and fields where they could choose another bucket or machine.

    Raises:
        ConfigError: naming the option and the field.
    """
    known = template.fields if template else ()
    for name in field_names(text):
        if name not in known:
            raise ConfigError(
                f"--{option} {text}: the field {{{name}}} is not in --partition "
                f"{template.template if template else '(which is empty)'}; add it, as in --partition '{{{name}}}/'"
            )
    before = text.partition("{")[0]
    if field_names(text) and option != "object" and "/" not in before.partition("://")[2 if "://" in before else 0]:
        raise ConfigError(
            f"--{option} {text}: a field can only stand behind a bucket or folder, as in s3://bucket/{{x}}/"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What scores the objects of one combination of values.

    Attributes:
        ref: the reference with its fields filled in; the report's `detector`.
        bundle: key of the calibrated bundle in the output store; empty: there is none.
        fingerprint: of the bundle.
        preprocess: of the bundle.
        error: why there is none.
    """

    ref: str
    bundle: str = ""
    fingerprint: str = ""
    preprocess: Preprocess | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorIndex:
    """The detectors of a run; without fields it is one for all objects, under the empty tuple.

    Attributes:
        ref: the reference as the user wrote it.
        partition: the template of the keys, or empty.
        fields: those that choose a detector.
        entries: by the fields' values, in their order.
    """

    ref: str
    partition: str = ""
    fields: tuple[str, ...] = ()
    entries: Mapping[Values, Entry] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        entries = [
            {**asdict(one), "values": list(values), "preprocess": one.preprocess and one.preprocess.to_dict()}
            for values, one in self.entries.items()
        ]
        return {"ref": self.ref, "partition": self.partition, "fields": list(self.fields), "entries": entries}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "DetectorIndex":
        """Inverse of `to_dict`."""
        entries = {}
        for one in stored["entries"]:
            plain = {name: value for name, value in one.items() if name != "values"}
            plain["preprocess"] = plain["preprocess"] and Preprocess.from_dict(plain["preprocess"])
            entries[tuple(one["values"])] = Entry(**plain)
        names = {name: stored[name] for name in ("ref", "partition")}
        return cls(**names, fields=tuple(stored["fields"]), entries=entries)

    def template(self) -> PartitionTemplate | None:
        """The partition template, where fields choose a detector."""
        return PartitionTemplate(self.partition) if self.fields else None

    def find(self, key: str, template: PartitionTemplate | None) -> Entry:
        """What scores the object with this key; `template` is `self.template()`, made once by the caller."""
        if template is None:
            return self.entries[()]
        found = template.match(key)
        values = tuple(found[name] or "" for name in self.fields)
        if "" in values:
            return Entry(
                ref=self.ref, error=f"the key does not fit --partition {self.partition}, so it has no detector"
            )
        new = "the folder is newer than the run's list of detectors; the next run scores it"
        return self.entries.get(values) or Entry(ref=self.ref, error=f"{', '.join(values)}: {new}")

    def largest(self) -> Preprocess:
        """The preprocessing with the most pixels."""
        known = [one.preprocess for one in self.entries.values() if one.preprocess]
        return max(known, key=lambda preprocess: preprocess.size)

    def fingerprints(self) -> str | dict[str, str | None]:
        """What the bundles are, for the run's settings: one fingerprint, or one for each value."""
        if not self.fields:
            return self.entries[()].fingerprint
        return {"/".join(values): one.fingerprint or None for values, one in sorted(self.entries.items())}


def list_values(
    lister: Lister, template: PartitionTemplate, fields: Sequence[str], options: ListingOptions
) -> list[Values]:
    """Values of `fields` in the keys of the input, sorted; some may belong to no object that the run will list.

    Raises:
        ConfigError: if there are none, or more than 20,000.
        StorageError: if the input can't be listed.
    """
    levels = template.template.split("/")
    last = max(place for place, level in enumerate(levels) if set(field_names(level)) & set(fields))
    if last == len(levels) - 1 or options.limit or not isinstance(lister, Store):
        keys: Iterator[str] = (info.key for info in iter_listing(lister, options))
    else:
        template = PartitionTemplate("/".join(levels[: last + 1]) + "/")
        keys = _folders(lister, levels[: last + 1])
    found: set[Values] = set()
    for key in keys:
        values = template.match(key)
        if values[fields[0]] is not None:
            found.add(tuple(str(values[name]) for name in fields))
        if len(found) > MAX_DETECTORS:
            raise ConfigError(f"more than {MAX_DETECTORS:,} combinations of {', '.join(fields)}; use fewer fields")
    if not found:
        raise ConfigError(
            f"no key under {lister.url} fits --partition {template.template}, so no detector can be chosen"
        )
    return sorted(found)


def _folders(source: Store, levels: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Folders (with a `/` behind) as deep as `levels`; a level without a field is that folder only."""
    if not levels:
        yield prefix
        return
    names = source.list_folders(prefix) if "{" in levels[0] else [levels[0]]
    for name in names:
        yield from _folders(source, levels[1:], f"{prefix}{name}/")


def inherited(before: Any, now: Any) -> Any:
    """Fingerprints of a run behind an older one: a product without a detector keeps that of its rows carried over."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return now
    return {value: now[value] or before.get(value) for value in now}


def comparable(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of two runs whose fingerprints are reduced to products that have a detector in both.

    A product that is new, gone, or without a detector on either side mixes nothing.
    """
    one, other = dict(stored), dict(wanted)
    before, now = one.get("detector"), other.get("detector")
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        both = [value for value in before if before[value] and now.get(value)]
        one["detector"], other["detector"] = ({value: side[value] for value in both} for side in (before, now))
    return one, other
