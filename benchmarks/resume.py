"""An interrupted run, with which the next one goes on if it would measure the same."""

import hashlib
import importlib.util
import json
from pathlib import Path

from benchmarks import results
from benchmarks.loops import OURS
from benchmarks.results import Measured
from benchmarks.steps import Plan


def key(plan: Plan, facts: dict[str, str], options: dict[str, bool]) -> str:
    """Equal for runs that measure the same: rows, loops, options, versions, machine, and hotloop's build."""
    of_run = {
        "rows": [row.name for row in plan.rows],
        "loops": plan.loops,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "minutes": plan.minutes,
        "facts": {name: fact for name, fact in facts.items() if name not in ("Date", "Order")},
        "options": options,
        "build": build(),
    }
    return hashlib.sha256(json.dumps(of_run, sort_keys=True).encode()).hexdigest()


def build() -> str:
    """A digest of hotloop's extension module, whose version does not tell builds apart. Empty without it."""
    package = importlib.util.find_spec(OURS)
    digest = hashlib.sha256()
    for folder in (package.submodule_search_locations or []) if package else []:
        for path in sorted(Path(folder).glob("*.so")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def unfinished(path: Path, key: str) -> Measured | None:
    """The interrupted run that is kept there, if it has this key and any step of it is done."""
    if not path.exists():
        return None
    try:
        kept = results.read(path)
    except (ValueError, KeyError, TypeError):
        return None  # Written by another version of the benchmarks.
    is_same = bool(kept.steps) and len(kept.runs) == 1 and kept.runs[0].key == key
    return kept if is_same else None
