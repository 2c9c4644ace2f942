"""A factory's XML as elements that know their lines, for an operator to find them."""

from __future__ import annotations

import xml.sax
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.handler import ContentHandler, feature_external_ges
from xml.sax.xmlreader import AttributesImpl, Locator

from htcondor_vpn.errors import ConfigUnreadable


@dataclass
class Element:
    """One element, its attributes, and its line (from 1)."""

    name: str
    attributes: dict[str, str]
    line: int
    children: list[Element] = field(default_factory=list)

    def get(self, name: str, default: str = "") -> str:
        """An attribute's value."""
        return self.attributes.get(name, default)

    def is_true(self, name: str) -> bool:
        """Whether an attribute is "True"."""
        return self.get(name).strip().lower() == "true"

    def all(self, *path: str) -> Iterator[Element]:
        """The elements below at `path`, a name for each level."""
        for child in self.children:
            if child.name == path[0]:
                if len(path) == 1:
                    yield child
                else:
                    yield from child.all(*path[1:])


class _Builder(ContentHandler):
    def __init__(self) -> None:
        super().__init__()
        self.root: Element | None = None
        self._open: list[Element] = []
        self._locator: Locator | None = None

    def setDocumentLocator(self, locator: Locator) -> None:  # noqa: N802  (sax's own name)
        self._locator = locator

    def startElement(self, name: str, attrs: AttributesImpl) -> None:  # noqa: N802
        line = self._locator.getLineNumber() if self._locator is not None else 0
        element = Element(name, dict(attrs.items()), line or 0)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def endElement(self, name: str) -> None:  # noqa: N802
        self._open.pop()


def read_document(path: Path) -> Element:
    """Returns the root element; raises `ConfigUnreadable`. Nothing outside the file is read."""
    builder = _Builder()
    parser = xml.sax.make_parser()  # noqa: S317  (without external entities; expat bounds the rest)
    parser.setFeature(feature_external_ges, False)
    parser.setContentHandler(builder)
    try:
        with path.open("rb") as file:
            parser.parse(file)
    except OSError as error:
        raise ConfigUnreadable(f"{path}: {error.strerror}", "name the factory's glideinWMS.xml") from error
    except xml.sax.SAXParseException as error:
        cause = f"{path}:{error.getLineNumber()}: it is no XML: {error.getMessage()}"
        raise ConfigUnreadable(cause, "correct it") from error
    assert builder.root is not None
    return builder.root
