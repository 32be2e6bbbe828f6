"""notes.md, which explains the results of single rows."""

from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).parent / "notes.md"


@dataclass(frozen=True)
class Notes:
    introduction: str
    of_rows: dict[str, str]

    def of(self, row: str) -> str:
        """The text on a row, or an empty one."""
        return self.of_rows.get(row, "")


def read(path: Path) -> Notes:
    """A heading has a row's name, and the text below it is the row's note."""
    name = ""
    parts: dict[str, list[str]] = {name: []}
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("#"):
            name = line.lstrip("# ").strip()
            parts.setdefault(name, [])
        else:
            parts[name].append(line)
    texts = {name: "\n".join(lines).strip() for name, lines in parts.items()}
    return Notes(texts.pop(""), texts)
