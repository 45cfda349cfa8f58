"""`headwater run --workers` and `--reload`: workers that die, come back, and never outlive their supervisor."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from headwater import Outgoing

from .conftest import PATIENCE, Process, Shell

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
READY = r"worker (\d) \(pid (\d+)\) is ready"


def ready(running: Process, count: int) -> dict[int, int]:
    """Worker number → pid, once so many have said that they are ready."""
    workers: dict[int, int] = {}
    while len(workers) < count:
        found = running.until(READY)
        workers[int(found[1])] = int(found[2])
    return workers


def gone(pid: int) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    import select

    ended = select.select([descriptor], [], [], PATIENCE)[0]
    os.close(descriptor)
    return bool(ended)


def test_workers_share_the_messages_and_know_their_number(shell: Shell) -> None:
    shell.write(
        "who.py",
        """
from headwater import App
app = App("who", broker="local://./data?durability=process")

@app.subscriber("work")
async def work(number: int) -> None:
    print(f"worker {app.worker_id} did {number}", flush=True)
""",
    )
    running = shell.start("run", "who:app", "--workers", 2)
    ready(running, 2)
    shell("publish", "who:app", "work", stdin="".join(f"{number}\n" for number in range(3)))
    shell.publish(*(Outgoing(number, "work", partition=number) for number in range(8)))
    seen: set[str] = set()
    while seen != {"0", "1"}:
        seen.add(running.until(r"worker (\d) did")[1])
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert running.text.count("who is stopped") == 2


def test_ctrl_c_reaches_every_worker_once_and_exits_130(shell: Shell) -> None:
    running = shell.start("run", "shop:app", "--workers", 2)
    workers = ready(running, 2)
    os.killpg(running.popen.pid, signal.SIGINT)  # as a terminal does
    assert running.wait() == 130
    assert running.text.count("shop is stopped") == 2
    assert all(gone(pid) for pid in workers.values())


def test_a_killed_worker_is_started_again(shell: Shell) -> None:
    running = shell.start("run", "shop:app", "--workers", 2)
    workers = ready(running, 2)
    os.kill(workers[1], signal.SIGKILL)
    running.until(r"worker 1 was killed by SIGKILL: started again in 0\.25 s")
    again = ready(running, 1)
    assert list(again) == [1]
    assert again[1] != workers[1]
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def test_a_worker_that_somebody_stops_is_replaced(shell: Shell) -> None:
    running = shell.start("run", "shop:app", "--workers", 1, "--workers", 2)
    workers = ready(running, 2)
    os.kill(workers[0], signal.SIGTERM)
    running.until("worker 0 ended with exit code 143: started again")
    assert list(ready(running, 1)) == [0]


def test_a_worker_that_keeps_dying_makes_the_supervisor_give_up(shell: Shell) -> None:
    shell.write("broken.py", "raise RuntimeError('no such luck')\n")
    begin = time.monotonic()
    running = shell.start("run", "broken:app", "--workers", 2)
    running.until("5 times in a row: giving up")
    assert running.wait() == 1
    assert "RuntimeError: no such luck" in running.text
    assert time.monotonic() - begin > 0.25 + 0.5 + 1 + 2  # it took its time between the tries
    assert running.text.count("is started") == 5  # the other worker waits for an app to be there


def test_what_another_try_cannot_mend_is_not_tried_again(shell: Shell) -> None:
    shell.write("bare.py", 'from headwater import App\napp = App("bare")\n')
    running = shell.start("run", "bare:app", "--workers", 2)
    assert running.wait() == 1
    assert "has no broker" in running.text
    assert "started again" not in running.text
    running = shell.start("run", "bare:nothing", "--workers", 2)
    assert running.wait() == 2
    assert "started again" not in running.text


def test_an_app_that_stops_itself_stops_all_workers(shell: Shell) -> None:
    shell.write(
        "ending.py",
        """
from headwater import App, StopApp
app = App("ending", broker="local://./data?durability=process")

@app.subscriber("work")
async def work(number: int) -> None:
    raise StopApp
""",
    )
    running = shell.start("run", "ending:app", "--workers", 2)
    ready(running, 2)
    shell("publish", "ending:app", "work", "1")
    assert running.wait() == 0
    assert running.text.count("ending is stopped") == 2


def test_workers_of_a_killed_supervisor_stop_gracefully(shell: Shell) -> None:
    running = shell.start("run", "shop:app", "--workers", 2)
    workers = ready(running, 2)
    running.signal(signal.SIGKILL)
    running.wait()
    assert all(gone(pid) for pid in workers.values())
    assert running.text.count("shop is stopped") == 2


def test_a_worker_that_still_imports_ends_with_its_killed_supervisor(shell: Shell) -> None:
    shell.write("slow.py", "import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    running = shell.start("run", "slow:app", "--workers", 2)
    running.until("importing")
    running.signal(signal.SIGKILL)
    running.wait()


def test_a_worker_that_does_not_stop_is_killed(shell: Shell) -> None:
    shell.write(
        "deaf.py",
        """
import time
import headwater.cli.cord
headwater.cli.cord.MARGIN = 0.3
from headwater import App
app = App("deaf", broker="local://./data?durability=process", graceful_timeout=0.1)

@app.subscriber("work", start="earliest")
async def work(number: int) -> None:
    print("begun", flush=True)
    time.sleep(60)  # holds the event loop
""",
    )
    shell.publish(Outgoing(1, "work"))
    running = shell.start("run", "deaf:app", "--workers", 2)
    running.until("begun")
    running.signal(signal.SIGTERM)
    assert running.wait() == 1
    assert "did not stop within 0.4 s: killed" in running.text


def test_reload_starts_again_when_a_python_file_changes(shell: Shell) -> None:
    shell.write("rules.py", "FACTOR = 1\n")
    shell.write(
        "live.py",
        "import rules\nfrom headwater import App\napp = App('live', broker='memory://')\n"
        "@app.after_startup\ndef say(): print(f'factor {rules.FACTOR}', flush=True)\n",
    )
    running = shell.start("run", "live:app", "--reload")
    running.until("factor 1")
    ready(running, 1)
    shell.write("rules.py", "FACTOR = 22\n")
    running.until(r"rules\.py changed")
    running.until("live is stopped")
    running.until("factor 22")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def test_reload_survives_a_broken_import_and_waits_for_the_next_change(shell: Shell) -> None:
    shell.write("live.py", "from headwater import App\napp = App('live', broker='memory://')\n")
    running = shell.start("run", "live:app", "--reload")
    ready(running, 1)
    shell.write("live.py", "def app(:\n")
    running.until("SyntaxError")
    running.until("waiting for a change")
    shell.write("live.py", "from headwater import App\napp = App('mended', broker='memory://')\n")
    running.until("mended is ready")
    running.signal(signal.SIGINT)
    assert running.wait() == 130


def test_without_watchfiles_reload_names_the_extra(shell: Shell) -> None:
    shell.write("watchfiles.py", "raise ImportError\n")
    error = shell("run", "shop:app", "--reload", code=1).stderr
    assert error == "error: watchfiles is not installed: pip install 'headwater[reload]'\n"


def resident(pid: int) -> int:
    """Mebibytes of memory that a process has for itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) >> 10  # type: ignore[index]  # it is there


def test_what_on_startup_loads_is_in_the_workers_and_not_in_their_parent(shell: Shell) -> None:
    shell.write("model_worker.py", (EXAMPLES / "model_worker.py").read_text())
    url = "local://./elsewhere?durability=process"
    running = shell.start("run", "model_worker:app", "--workers", 2, MODEL_MEGABYTES="150", SCORING_BROKER=url)
    workers = ready(running, 2)
    assert all(resident(pid) > 150 for pid in workers.values())
    assert resident(running.popen.pid) < 75
    shell("publish", f"local://{shell.path}/elsewhere", "texts", "hello")
    running.until(r"scored by worker \d with 150 MB \[texts/")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def test_how_long_each_step_of_the_start_took_is_logged(shell: Shell) -> None:
    running = shell.start("run", "shop:app", "--workers", 2)
    steps = running.until(r"shop is ready: (.*)")[1]
    assert [step.split()[0] for step in steps.split(", ")] == [
        "lifespan", "on_startup", "broker", "connect", "declare", "consume", "after_startup",
    ]  # fmt: skip
