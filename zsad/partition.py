"""Path templates: the parts of an object's key that become report columns.

`{line}/{camera}/{date}/` reads "a/cam2/2026-03-01/x.png" as line "a", camera "cam2", date "2026-03-01". A template that
ends in `/` describes how keys begin, any other the whole key. A field is one or more characters without `/`, up to the
first place where the text behind it fits: `{part}-{view}.png` reads "x-1-2.png" as "x" and "1-2".
"""

import re
from dataclasses import dataclass
from functools import cached_property

from zsad.errors import ConfigError

MAX_FIELDS = 16
_FIELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class PartitionTemplate:
    """A checked template; `fields` are its column names in order.

    Raises:
        ConfigError: unbalanced braces, a field name that is no lower-case identifier or comes twice, two fields with
            nothing between them, no field at all, or more than 16.
    """

    template: str

    def __post_init__(self) -> None:
        fields = self.fields
        if not fields:
            raise self._error("it names no {field}")
        if len(fields) > MAX_FIELDS:
            raise self._error(f"it has {len(fields)} fields; the limit is {MAX_FIELDS}")
        for name in fields:
            if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
                raise self._error(f"the field name {name!r} must be lower-case letters, digits and _")
            if fields.count(name) > 1:
                raise self._error(f"the field {name!r} comes twice")
        if "}{" in self.template:
            raise self._error("two fields need a character between them, such as / or -")
        if re.search(r"[{}]", _FIELD.sub("", self.template)):
            raise self._error("its braces are not balanced")
        if self.template.startswith("/"):
            raise self._error("keys are relative to the input URL, so it can't begin with /")

    @property
    def fields(self) -> tuple[str, ...]:
        """Column names in the order of the template."""
        return tuple(_FIELD.findall(self.template))

    def match(self, key: str) -> dict[str, str | None]:
        """Read the fields of `key`, relative to the input URL; all None when it does not fit the template."""
        found = self._pattern.match(key)
        return dict.fromkeys(self.fields) if found is None else dict(found.groupdict())

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        head, *rest = _FIELD.split(self.template)
        end = "" if self.template.endswith("/") else r"\Z"
        texts = [re.escape(literal) for literal in rest[1::2]]
        texts[-1] += end
        # Atomic groups: a field once read is not read differently, so that hostile keys cost linear time.
        groups = [f"(?>(?P<{name}>[^/]+?){text})" for name, text in zip(rest[::2], texts, strict=True)]
        return re.compile(re.escape(head) + "".join(groups))

    def _error(self, reason: str) -> ConfigError:
        return ConfigError(f"the partition template {self.template!r} can't be used: {reason}")
