"""Freed memory is kept only where the user did not choose otherwise."""

import subprocess
import sys

import pytest

ASK = "from foretoken.core.memory import keep_freed_memory; print(keep_freed_memory())"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt belongs to glibc")
def test_the_users_own_settings_win():
    answer = subprocess.run(
        [sys.executable, "-c", ASK], env={"MALLOC_ARENA_MAX": "2"}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
