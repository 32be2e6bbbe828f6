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
    """A heading names a row, or several with commas between, and the text below it is their note."""
    names = ""
    parts: dict[str, list[str]] = {names: []}
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("#"):
            names = line.lstrip("# ").strip()
            parts.setdefault(names, [])
        else:
            parts[names].append(line)
    texts = {name: "\n".join(lines).strip() for names, lines in parts.items() for name in names.split(", ")}
    return Notes(texts.pop(""), texts)
