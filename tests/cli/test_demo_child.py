"""No process of the demo outlives it, and one that dies says why."""

from __future__ import annotations

import os

import pytest

from p2pdist.cli.demo.child import Child, ChildDied

OBEDIENT = "print('up', flush=True)\nimport signal\nsignal.pause()"
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\nwhile 1: signal.pause()"


@pytest.fixture
async def start(tmp_path):
    children = []

    async def run(program: str) -> Child:
        child = await Child.start("it", ["-c", program], tmp_path / "it.log", read_stdout=True)
        children.append(child)
        return child

    yield run
    for child in children:
        await child.gone()


async def test_one_that_is_asked_ends_and_its_status_is_known(start):
    child = await start(OBEDIENT)
    assert await child.first_line(10.0) == "up"
    assert await child.stop(10.0) == -15
    assert not child.running


async def test_one_that_does_not_listen_is_killed(start):
    child = await start(DEAF)
    assert await child.first_line(10.0) == "up"
    assert await child.stop(0.05) == -9


async def test_gone_means_gone(start):
    child = await start(DEAF)
    await child.first_line(10.0)
    pid = child._process.pid
    await child.gone()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_one_that_ends_by_itself_is_reported_with_its_last_words(start):
    child = await start("import sys\nsys.stderr.write('no room left\\n\\n')\nsys.exit(3)")
    with pytest.raises(ChildDied, match="did not start: no room left"):
        await child.first_line(10.0)
    await child._process.wait()
    with pytest.raises(ChildDied, match="status 3: no room left"):
        child.check()


async def test_one_that_says_nothing_in_time_is_reported(start):
    child = await start("import signal\nsignal.pause()")
    with pytest.raises(ChildDied, match="it said nothing"):
        await child.first_line(0.05)


async def test_it_does_not_inherit_the_users_settings(start, monkeypatch):
    monkeypatch.setenv("P2PDIST_MIRROR_PORT", "1")
    child = await start("import os\nprint([k for k in os.environ if k.startswith('P2PDIST_')], flush=True)")
    assert await child.first_line(10.0) == "[]"


async def test_a_ctrl_c_in_the_terminal_does_not_reach_it_before_us(start):
    child = await start(OBEDIENT)
    await child.first_line(10.0)
    assert os.getpgid(child._process.pid) != os.getpgid(0)
