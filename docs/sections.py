"""griffe's extension that reads two sections of our docstrings by the names that it knows."""

from __future__ import annotations

import re
from typing import Any

import griffe

KNOWN = {"Example": "Examples", "Members": "Attributes"}


class Sections(griffe.Extension):
    """Renames sections before docstrings are parsed: else they would be plain text."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                rf"^( *)({'|'.join(KNOWN)}):$",
                lambda match: f"{match[1]}{KNOWN[match[2]]}:",
                obj.docstring.value,
                flags=re.MULTILINE,
            )
