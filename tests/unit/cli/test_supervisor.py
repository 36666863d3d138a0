"""Children end with their parent, also with one that dies before the kernel could be told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from tocsin.bus.broker import end_with_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can signal an orphan")


def test_a_child_whose_parent_died_before_the_kernel_was_told_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "print('it runs')"],
        preexec_fn=partial(end_with_parent, os.getpid() + 1),
        capture_output=True,
        check=False,
        timeout=10,
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, b"")


def test_a_child_ends_when_its_parent_is_killed() -> None:
    program = (
        "import os, subprocess, sys, time\n"
        "from functools import partial\n"
        "from tocsin.bus.broker import end_with_parent\n"
        "told = partial(end_with_parent, os.getpid())\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], preexec_fn=told)\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.kill()
        # The pipe is the child's too: it ends when both are gone.
        assert parent.communicate(timeout=30)[0] == b""
