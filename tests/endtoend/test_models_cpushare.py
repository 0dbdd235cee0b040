import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
import trio

from models import cpushare

pytestmark = pytest.mark.slow

PERIODS_S = 1.5

# Works for a line's worth of processor time, then answers with the wall time that took.
WORKER = """
import sys, time
sys.stdout.write("ready\\n")
sys.stdout.flush()
for line in sys.stdin:
    wall, until = time.perf_counter(), time.process_time() + float(line)
    while time.process_time() < until:
        pass
    sys.stdout.write(f"{time.perf_counter() - wall}\\n")
    sys.stdout.flush()
"""


@contextlib.contextmanager
def worker():
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WORKER], stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


async def work(process, limiter, work_s):
    """Have the worker work; returns the wall time it took."""
    limiter.set_busy(True)
    process.stdin.write(f"{work_s}\n")
    answer = await trio.to_thread.run_sync(process.stdout.readline)
    limiter.set_busy(False)
    return float(answer)


def limited(process, share, use, *, threads=1):
    async def main():
        limiter = cpushare.limit(process.pid, share=share, threads=threads)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limiter.serve)
            await use(limiter)
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize(("share", "threads"), [(0.3, 1), (0.1, 1), (0.3, 4)])
def test_a_busy_process_uses_its_share_of_what_it_could_use(share, threads):
    with worker() as process:

        async def use(limiter):
            used_s, began_s = cpushare.processor_s(process.pid), trio.current_time()
            await work(process, limiter, PERIODS_S * share)
            seen = (cpushare.processor_s(process.pid) - used_s) / (trio.current_time() - began_s)
            # Above it only by a period's credit; below it when this machine has other work.
            assert 0.6 * share < seen < 1.2 * share

        # The process works in one thread, whatever it might use.
        limited(process, share, use, threads=threads)


def test_service_times_come_out_near_time_over_share():
    with worker() as process:

        async def use(limiter):
            times_s = [await work(process, limiter, 0.02) for _ in range(15)]
            assert 0.04 < sorted(times_s)[7] < 0.09
            assert 0.045 < sum(times_s) / len(times_s) < 0.1

        limited(process, 0.4, use)


def test_a_process_is_left_running_at_the_end():
    with worker() as process:

        async def use(limiter):
            limiter.set_busy(True)
            process.stdin.write("1000\n")
            while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                await trio.lowlevel.checkpoint()

        limited(process, 0.1, use)
        assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED


def test_a_process_that_dies_does_no_harm():
    with worker() as process:

        async def use(limiter):
            limiter.set_busy(True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            await trio.sleep(3 * cpushare.PERIOD_S)

        limited(process, 0.1, use)


def make_group(folder, controllers):
    folder.mkdir()
    (folder / "cgroup.subtree_control").write_text(controllers)
    return folder


def test_a_delegated_group_is_preferred_and_gets_a_quota(tmp_path):
    # Plain files stand for the kernel's: what is written where is all there is to see.
    service = make_group(tmp_path / "gridnode.service", "cpu memory")
    daemon = make_group(service / "daemon", "")
    quota = cpushare.limit(os.getpid(), share=0.25, threads=2, own_group=daemon)
    folder = service / f"gridnode-worker-{os.getpid()}"
    assert (folder / "cpu.max").read_text() == "5000 10000"
    assert (folder / "cgroup.procs").read_text() == str(os.getpid())
    assert isinstance(quota, cpushare.Quota)
    for file in folder.iterdir():
        file.unlink()
    quota.close()
    assert not folder.exists()


def test_a_small_share_gets_a_longer_period_because_the_kernel_takes_no_quota_below_a_millisecond(tmp_path):
    group = make_group(tmp_path / "group", "cpu")
    cpushare.limit(os.getpid(), share=0.02, threads=1, own_group=group)
    assert (group / f"gridnode-worker-{os.getpid()}" / "cpu.max").read_text() == "1000 50000"


def test_without_a_group_of_our_own_the_process_is_stopped_and_continued(tmp_path):
    group = make_group(tmp_path / "group", "memory")

    async def main():
        assert isinstance(cpushare.limit(os.getpid(), share=0.5, threads=1, own_group=group), cpushare.DutyCycle)

    trio.run(main)


@pytest.mark.parametrize(("share", "threads"), [(0.0, 1), (1.0, 1), (0.5, 0)])
def test_a_limit_that_makes_no_sense_is_a_wrong_call(share, threads):
    with pytest.raises(ValueError, match="share"):
        cpushare.limit(os.getpid(), share=share, threads=threads)
