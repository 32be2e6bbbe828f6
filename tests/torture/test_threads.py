"""Threads that use each other's loops: see `threads.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

from torture import threads
from torture.effort import SEED, effort

SECONDS = effort(1.5, 30)


@pytest.mark.timeout(SECONDS + 5 * threads.HANGS)
@pytest.mark.parametrize("scene", threads.SCENES)
def test_a_scene(loop_name, scene):
    if loop_name != "hotloop" and scene in threads.ONLY_HERE:
        pytest.skip("only hotloop says what happens then")
    command = [sys.executable, "-X", "faulthandler", "-m", "torture.threads", "--loop", loop_name]
    result = subprocess.run(
        [*command, "--seconds", str(SECONDS), "--seed", str(SEED), scene],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=SECONDS + 4 * threads.HANGS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "panicked" not in result.stderr, result.stderr
