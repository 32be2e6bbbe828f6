"""The mixed load of torture.soak, for a while."""

import subprocess
import sys
from pathlib import Path

import pytest

from torture.effort import SEED, effort

SECONDS = effort(9, 120)


@pytest.mark.timeout(SECONDS + 300)
def test_a_soak():
    result = subprocess.run(
        [sys.executable, "-m", "torture.soak", "--seconds", str(SECONDS), "--seed", str(SEED)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    print(result.stdout)
    assert result.returncode == 0, (result.stdout, result.stderr)
    # asyncio's log may have a line about a child whose status somebody else has read.
    assert "Traceback" not in result.stderr
    assert "panicked" not in result.stderr
