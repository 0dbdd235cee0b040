"""The daemon process: makes the real planes and the real executor, runs a node in them, and obeys the service manager.

SIGTERM and SIGINT drain; a second one ends at once. Unknown exceptions end the process on purpose: a half-dead node
lies to its peers, and the service manager starts a whole one.
"""

import gc
import os
import random
import secrets
import signal
import socket as socket_module
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import psutil
import trio

from gridnode.config import Config, default_socket
from gridnode.credentials import Credentials
from gridnode.errors import ConfigError, StateDirectoryError
from gridnode.http.metrics import serve_metrics
from gridnode.logs import EventLog
from gridnode.membership import EpochBehindError
from gridnode.node import Node
from gridnode.notify import READY, STOPPING, WATCHDOG, Notifier
from gridnode.probe import MachineProbe
from gridnode.statedir import StateDirectory
from models import codepages
from models.executor import Executor
from transport.admission import Credentials as HandshakeCredentials
from transport.dataplane import DataPlaneConfig, TlsDataPlane
from transport.files import StateFileError
from transport.libp2p_imports import leave_out

if TYPE_CHECKING:
    from models.workerstart import Spare

log = EventLog("daemon")

EXIT_RESTART: Final = 75
"""Told to the service manager when the daemon must simply start anew (EX_TEMPFAIL of sysexits.h)."""


SPARE_S: Final = 30.0
"""Time that a spare worker waits for the first model: a slow board needs ten seconds to know what it is to run."""


def run_daemon(config: Config, state_dir: Path, *, spare: "Spare | None" = None) -> int:
    """Run a node until it is told to stop.

    Parameters
    ----------
    config : Config
        Already checked.
    state_dir : Path
        Of a node that has made or joined a grid.
    spare : Spare, optional
        A worker for the first model; stays the caller's to close.

    Returns
    -------
    int
        Exit status: 0 after a drain, EXIT_RESTART where the daemon must start anew.

    Raises
    ------
    GridError
        The configuration, the state directory or a port cannot be used.
    """
    state = StateDirectory(state_dir)
    state.open()
    try:
        credentials = Credentials(state, clock=time.time)
        epoch = state.next_epoch()
        return trio.run(_run, config, state, credentials, epoch, spare)
    except StateFileError as error:
        raise StateDirectoryError(str(error)) from error
    except BaseException as error:
        behind = _find(error, EpochBehindError)
        if behind is None:
            raise
        state.next_epoch(at_least=behind.epoch)
        log.warning("epoch_was_behind", epoch=behind.epoch)
        return EXIT_RESTART
    finally:
        state.close()


async def _run(
    config: Config, state: StateDirectory, credentials: Credentials, epoch: int, spare: "Spare | None"
) -> int:
    notifier = Notifier(dict(os.environ))
    node = _make_node(config, state, credentials, epoch, spare)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey_signals, node, nursery.cancel_scope)
        async with trio.open_nursery() as around:
            if config.metrics.enabled:
                port = await around.start(_serve_metrics, config, node)
                node.metrics_address = f"{config.metrics.host}:{port}"
            around.start_soon(_notify, notifier, node)
            if spare is not None:
                around.start_soon(_let_go, spare)
            await node.serve()
            around.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    return 0


async def _serve_metrics(config: Config, node: Node, *, task_status: trio.TaskStatus[int]) -> None:
    await serve_metrics(
        host=config.metrics.host,
        port=config.metrics.port,
        render=node.insight.metrics,
        is_ready=lambda: node.is_ready,
        task_status=task_status,
    )


async def _let_go(spare: "Spare") -> None:
    """End a spare worker that no model wanted."""
    await trio.sleep(SPARE_S)
    spare.close()


async def _obey_signals(node: Node, scope: trio.CancelScope) -> None:
    """Drain at the first SIGTERM or SIGINT, end at once at the second."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        count = 0
        async for number in signals:
            count += 1
            log.info("signal_received", signal=signal.Signals(number).name)
            if count == 1:
                node.stop()
            else:
                scope.cancel()


async def _notify(notifier: Notifier, node: Node) -> None:
    """Tell the service manager of readiness, and of life while the core takes events."""
    await node.wait_ready()
    log.info("daemon_ready", after_s=round(_age_s(), 2))
    notifier.send(READY, f"STATUS=serving grid {node.credentials.grid.name}")
    await trio.to_thread.run_sync(lambda: codepages.give_back(codepages.clean_ranges()))
    # What the start made stays. Each full collection would look at all of it again and hold the loop up for 20 ms.
    gc.collect()
    gc.freeze()
    interval_s = notifier.watchdog_interval_s
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_notify_stop, notifier, node)
        while interval_s is not None:
            # This task runs only if the loop that drives the core does, and the core must be quick to answer.
            node.core.state_record(trio.current_time())
            notifier.send(WATCHDOG)
            await trio.sleep(interval_s)


def _age_s() -> float:
    """Return how long this process has run; see proc(5), field starttime of stat."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


async def _notify_stop(notifier: Notifier, node: Node) -> None:
    await node.wait_stopping()
    notifier.send(STOPPING, "STATUS=draining")


# ---------------------------------------------------------------- making the parts


def _make_node(
    config: Config, state: StateDirectory, credentials: Credentials, epoch: int, spare: "Spare | None"
) -> Node:
    # The commands that do not run a daemon must not pay for libp2p, and no daemon for the parts that it never uses.
    leave_out()
    from transport.libp2p_host import Libp2pHost

    handshake = HandshakeCredentials(credentials.key, credentials.chain_pem, credentials.trust, epoch=epoch)
    seed = secrets.token_hex(16)
    threads = thread_count(config)
    parts: dict[str, Node] = {}
    control = Libp2pHost(
        credentials.key,
        grid_id=credentials.grid_id,
        epoch=epoch,
        listen=(config.network.control.host, config.network.control.port),
        trust=credentials.trust,
        chain_pem=credentials.chain_pem,
        on_bug=lambda error: parts["node"].fail(error),
    )
    data = TlsDataPlane(
        handshake,
        DataPlaneConfig(
            host=config.network.data.host, port=config.network.data.port, idle_s=config.network.idle_connection_s,
            inbound_idle_s=config.network.idle_connection_s * 1.5,
        ),
        on_peer_opened=lambda peer: parts["node"].membership.connected(peer),
        on_peer_closed=lambda peer: parts["node"].watch.doubt(peer),
    )  # fmt: skip
    executor, setup = _make_executor(config, state, threads, random.Random(f"{seed}/executor"), spare)
    own = psutil.Process().pid

    def own_pids() -> list[int]:
        return [own, *(worker.pid for worker in executor.statistics() if worker.pid)]

    node = Node(
        config=config,
        state=state,
        credentials=credentials,
        epoch=epoch,
        control=control,
        data=data,
        executor=executor,
        seed=seed,
        socket=Path(config.client.socket) if config.client.socket else default_socket(os.environ),
        name=config.node.name or _host_label(),
        setup=setup,
        threads=threads,
        probe=MachineProbe(own_pids=own_pids, threads=max(threads, config.scheduler.queue.slots)),
    )
    node.renewers = (data.renew, control.renew)
    parts["node"] = node
    return node


def thread_count(config: Config) -> int:
    """Return the threads of a run that goes alone: as configured, or one per usable core."""
    return config.runtime.threads or len(os.sched_getaffinity(0))


def _make_executor(
    config: Config, state: StateDirectory, threads: int, rng: random.Random, spare: "Spare | None"
) -> tuple[Executor, str]:
    """Return the executor, and what its measurements depend on."""
    if config.runtime.executor == "emulated":
        from models.emulated import DeviceProfile, EmulatedExecutor

        try:
            device = msgspec.toml.decode(Path(config.runtime.profile).read_bytes(), type=DeviceProfile)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"device profile {config.runtime.profile} cannot be used: {error}") from error
        return EmulatedExecutor(device, rng), f"emulated {config.runtime.profile}"
    from models.admission import PassedGraphs
    from models.runtime import Runtime, RuntimeConfig
    from models.versions import installed_version

    runtime = RuntimeConfig(slots=config.scheduler.queue.slots, threads=threads, cpu_share=config.runtime.cpu_share)
    setup = f"onnxruntime {installed_version('onnxruntime')} threads {threads} share {config.runtime.cpu_share:g}"
    passed = PassedGraphs(state.graphs)
    passed.load()
    return Runtime(runtime, rng, passed=passed, spare=spare), setup


def _host_label() -> str:
    """Return the host's name, fit for a node card."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket_module.gethostname())
    return name.strip("-.")[:63]


def _find(error: BaseException, kind: type[EpochBehindError]) -> EpochBehindError | None:
    for leaf in _leaves(error):
        if isinstance(leaf, kind):
            return leaf
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
