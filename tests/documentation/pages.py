"""The examples on the pages of an installed documentation of Python, in HTML."""

import html.parser
import os
import pathlib
import sys

VERSION = "{}.{}".format(*sys.version_info)
FOLDERS = [
    # Where install.sh puts it: of this Python if there is one, else of another.
    *sorted(
        pathlib.Path(sys.prefix).glob("documentation/usr/share/doc/python3.*/html"),
        key=lambda folder: folder.parent.name != f"python{VERSION}",
    ),
    pathlib.Path(f"/usr/share/doc/python{VERSION}/html"),
]


def folder():
    """The documentation that there is, or None."""
    chosen = os.environ.get("HOTLOOP_PYTHON_DOCS")
    for folder in [pathlib.Path(chosen)] if chosen else FOLDERS:
        if (folder / "library/asyncio.html").exists():
            return folder
    return None


def examples(folder):
    """All blocks of code by their names."""
    found = {}
    for path in [
        *sorted(folder.glob("library/asyncio*.html")),
        *folder.glob("howto/a-conceptual-overview-of-asyncio.html"),
    ]:
        page = Page(path.stem)
        page.feed(path.read_text())
        found.update(page.examples)
    return found


class Page(html.parser.HTMLParser):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.anchor = ""
        self.examples = {}
        self.text = None
        self.in_line_number = False

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("section", "dt") and "id" in attributes:
            self.anchor = attributes["id"]
        elif tag == "pre":
            self.text = ""
        elif tag == "span":
            self.in_line_number = attributes.get("class") == "linenos"

    def handle_data(self, data):
        if self.text is not None and not self.in_line_number:
            self.text += data

    def handle_endtag(self, tag):
        if tag == "span":
            self.in_line_number = False
        elif tag == "pre":
            number = 1
            while f"{self.name}#{self.anchor}/{number}" in self.examples:
                number += 1
            self.examples[f"{self.name}#{self.anchor}/{number}"] = self.text
            self.text = None
