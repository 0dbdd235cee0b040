"""Runs the demo: films, grid, cameras, a killing, the table, the summary."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import trio

from gridnode.client import AsyncGrid
from gridnode.demo.film import FILM_FPS, FILM_S, Film, cache_folder, get_film
from gridnode.demo.load import DEADLINE_S, Cameras
from gridnode.demo.pictures import write_pictures
from gridnode.demo.plan import Plan, make_plan
from gridnode.demo.stage import MODEL, DemoNode, Stage
from gridnode.demo.tally import RECENT_S, Summary, Tally, quantile_ms
from gridnode.demo.theatre import perform
from gridnode.errors import GridError
from models.average_precision import AveragePrecision

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.status import Status

    from gridnode.demo.screen import NodeView, View

SEEDS: Final = ("demo",)
"""One film each."""
KILL_SHARE: Final = 0.5
"""Part of the demo after which the node is killed."""
JOIN_SHARE: Final = 1 / 3
"""Part of the demo after which a late node joins; before the killing, so that the two are told apart."""
DEAD_S: Final = 4.0
"""Time before a killed node is started again; an eighth of a short demo."""
REFRESH_S: Final = 0.25
PLAIN_LINE_S: Final = 5.0
"""Time between two lines where there is no terminal."""
FIRST_LOOK_S: Final = 0.05
WARM_UP_FRAMES: Final = 10
WARM_UP_PAUSE_S: Final = 0.02
"""Between two first frames, so that they see what else the machine is doing."""
WARM_UP_S: Final = 10.0
"""Deadline of a first frame: the scheduler has not seen one yet."""

Victim = Literal["middle", "entry", "none"]


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    seconds: float = 60.0
    kill: Victim = "middle"
    fps: float | None = None
    join_late: bool = False
    keep: Path | None = None
    annotate: Path | None = None


async def run_demo(options: DemoOptions, *, environment: Mapping[str, str], console: "Console") -> Summary:
    """Run the demo in a folder of its own and return the summary; raises GridError.

    Whatever happens, all processes are gone afterwards, and the folder too unless it is to be kept.
    """
    return await perform(
        lambda folder: _Show(options, folder, environment, console).run(), keep=options.keep, prefix="gridnode-demo-"
    )


class _Show:
    """One run of the demo."""

    def __init__(self, options: DemoOptions, folder: Path, environment: Mapping[str, str], console: "Console") -> None:
        self._options = options
        self._folder = folder
        self._cache = cache_folder(environment)
        self._console = console
        self._tally = Tally(deadline_s=DEADLINE_S)
        self._stage = Stage(folder, say=self._say, show=self._show)
        self._states: dict[str, str] = {node.name: "alive" for node in self._stage.nodes}
        self._events: list[tuple[float, str]] = []
        self._films: list[Film] = []
        self._begun_s = trio.current_time()
        self._start_s = 0.0
        self._late: tuple[DemoNode, float] | None = None
        self._status: Status | None = None
        """The line that says what is waited for, where there is a terminal."""

    async def run(self) -> Summary:
        """Run the demo."""
        try:
            self._introduce()
            with self._waiting():
                await self._prepare()
                plan = await self._measure()
            if self._options.keep is not None:
                self._say_how_to_join()
            self._say("first frame")
            if not self._console.is_terminal:
                self._console.print(_plan_text(plan))  # the live table says it too
            await self._perform(plan)
            await self._read_counters()
        finally:
            await self._stage.stop()
        return await self._sum_up()

    # ------------------------------------------------------------ before

    def _introduce(self) -> None:
        """Say what is about to be seen."""
        shares = ", ".join(f"{node.name} {node.plan.cpu_share:.0%}" for node in self._stage.nodes)
        kill = "" if self._options.kill == "none" else " Half way one node is killed; no frame may be lost."
        self._console.print(
            f"Three daemons on this machine make a grid; their shares of a core are: {shares}. Street cameras send "
            f"frames into {self._stage.entry.name}, more than it can bear, and all three find the road users on "
            f"them.{kill}\n"
        )

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Show below the steps what is waited for, where there is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status("", spinner="dots") as self._status:
            yield
        self._status = None

    async def _prepare(self) -> None:
        """Draw the films while the grid is made."""
        frames = round(FILM_S * FILM_FPS)
        films: dict[str, Film] = {}
        drawn = trio.Event()

        async def draw(seed: str) -> None:
            films[seed] = await get_film(seed, frames, self._cache)
            self._say(f"street film of {frames} frames is drawn")
            drawn.set()

        async with trio.open_nursery() as nursery:
            for seed in SEEDS:
                nursery.start_soon(draw, seed)
            await self._stage.build()
            if not drawn.is_set():
                self._show("the street film is drawn; it is kept for the next demo")
        self._films = [films[seed] for seed in SEEDS]

    async def _measure(self) -> Plan:
        """Choose the rate from measured service times of real frames.

        They are measured on the founder, whose worker has a whole core. It keeps them, as nobody is faster; should it
        not, what it measured itself on a larger picture has to do. A worker with a share of a core manages that share
        of the founder's frames.
        """
        founder = self._stage.founder
        self._show(f"{founder.name} answers a few frames, to choose how many are sent")
        seen_s: list[float] = []
        async with AsyncGrid([founder.socket]) as grid:
            for jpeg in self._films[0].frames[:WARM_UP_FRAMES]:
                result = await grid.infer(MODEL, jpeg, rungs=False, deadline_s=WARM_UP_S)
                if result.node_id == founder.peer_id:
                    seen_s.append(result.timings.service_s)
                await trio.sleep(WARM_UP_PAUSE_S)
        seen_s = seen_s or [model.mean_ms / 1e3 for model in await founder.models() if model.mean_ms is not None]
        if not seen_s:
            raise GridError(f"node {founder.name} has not measured model {MODEL}; see its log (--keep)")
        alone_s = sum(seen_s) / len(seen_s) * founder.plan.cpu_share
        return make_plan([alone_s / node.plan.cpu_share for node in self._stage.nodes], fps=self._options.fps)

    # ------------------------------------------------------------ during

    async def _perform(self, plan: Plan) -> None:
        """Send the frames while the table is drawn and a node is killed."""
        seconds = self._options.seconds
        self._start_s = trio.current_time()
        with self._live() or nullcontext() as live:
            async with AsyncGrid(self._stage.sockets) as grid, trio.open_nursery() as around:
                around.start_soon(self._draw, plan, live)
                around.start_soon(self._kill)
                if self._options.join_late:
                    around.start_soon(self._join)
                await Cameras(grid, MODEL, self._films, plan, self._tally).run(seconds)
                around.cancel_scope.cancel()
            if live is not None:
                live.update(self._picture(plan, trio.current_time()), refresh=True)

    def _live(self) -> "Live | None":
        """Return the live table; None where there is no terminal to draw on."""
        if not self._console.is_terminal:
            return None
        from rich.live import Live

        return Live(console=self._console, auto_refresh=False, transient=False)

    async def _draw(self, plan: Plan, live: "Live | None") -> None:
        """Look at the nodes and draw, again and again."""
        next_line_s = trio.current_time() + PLAIN_LINE_S
        while True:
            await self._read_counters()
            now_s = trio.current_time()
            if live is not None:
                live.update(self._picture(plan, now_s), refresh=True)
            elif now_s >= next_line_s:
                next_line_s += PLAIN_LINE_S
                self._console.print(_line(self._view(now_s)))
            await trio.sleep(REFRESH_S)

    async def _read_counters(self) -> None:
        """Read what only the daemons know."""
        for node in list(self._stage.nodes):
            if not node.daemon.is_running:
                continue
            status = await node.status()
            if status is not None:
                self._tally.on_counters(
                    node.peer_id, epoch=status.epoch, offloaded=status.offloaded, stolen=status.stolen
                )

    async def _kill(self) -> None:
        """Kill a node half way with SIGKILL, and start it again after a while."""
        if self._options.kill == "none":
            return
        node = self._stage.entry if self._options.kill == "entry" else self._stage.node("middle")
        seconds = self._options.seconds
        await trio.sleep_until(self._start_s + seconds * KILL_SHARE)
        node.daemon.kill()
        self._states[node.name] = "killed"
        self._tell(
            f"{node.name} was killed with SIGKILL" + (", the client moves on" if node is self._stage.entry else "")
        )
        await trio.sleep(min(DEAD_S, seconds / 8))
        node.start()
        self._states[node.name] = "starting"
        self._tell(f"{node.name} is started again")
        while not await node.is_able():  # noqa: ASYNC110 - another process tells nothing
            await trio.sleep(REFRESH_S)
        self._states[node.name] = "alive"
        self._tell(f"{node.name} is back")

    async def _join(self) -> None:
        """Add a node while frames flow."""
        await trio.sleep_until(self._start_s + self._options.seconds * JOIN_SHARE)
        begun_s = trio.current_time()
        self._states["late"] = "joining"
        self._tell("late is invited and joins")
        node = await self._stage.add_latecomer()
        self._late = (node, begun_s)
        while self._tally.first_answer_s(node.peer_id) is None:  # noqa: ASYNC110 - the tally is pure
            await trio.sleep(FIRST_LOOK_S)
        self._states["late"] = "alive"
        self._tell(f"late answered its first frame after {trio.current_time() - begun_s:.1f} s")

    # ------------------------------------------------------------ after

    async def _sum_up(self) -> Summary:
        """Measure, draw pictures, print."""
        truths = [film.truth for film in self._films]
        precision = await trio.to_thread.run_sync(self._tally.precision, truths)
        folder = self._options.annotate or self._cache / "demo-pictures"
        await trio.to_thread.run_sync(write_pictures, folder, self._tally.answered, self._films)
        overall = precision.get("")
        summary = self._tally.summary(
            self._all_nodes(),
            map50=None if overall is None else round(overall.mean, 4),
            joined_late_s=self._joined_late_s(),
        )
        self._print(summary, precision, folder)
        return summary

    def _joined_late_s(self) -> float | None:
        if self._late is None:
            return None
        node, begun_s = self._late
        first_s = self._tally.first_answer_s(node.peer_id)
        return None if first_s is None else round(first_s - begun_s, 2)

    def _print(self, summary: Summary, precision: dict[str, AveragePrecision], folder: Path) -> None:
        from gridnode.demo.screen import summary_view

        self._console.print(
            summary_view(
                summary,
                precision,
                refusals=dict(self._tally.refusals),
                pictures=str(folder),
                columns=self._console.width,
            )
        )

    # ------------------------------------------------------------ telling

    def _say_how_to_join(self) -> None:
        """Tell how to look at this grid, and to add a node to it, from another terminal."""
        own = self._folder / "own"
        for command in (
            f"gridnode peers --watch --socket {self._stage.entry.socket}",
            f"gridnode invite --socket {self._stage.founder.socket}",
            f"gridnode join TOKEN --name own --state-dir {own}",
            f"gridnode run --preset loopback --state-dir {own} --socket {own}.sock",
        ):
            self._console.print(f"         {command}", style="dim", soft_wrap=True, markup=False)

    def _say(self, text: str) -> None:
        """Print a step; once frames flow, events tell."""
        if self._start_s:
            return
        self._console.print(f"[dim]{trio.current_time() - self._begun_s:5.1f} s[/]  {text}")

    def _show(self, text: str) -> None:
        """Say what is waited for."""
        if self._status is not None:
            self._status.update(f"[dim]{text}[/]")

    def _tell(self, text: str) -> None:
        """Note an event, and print it where there is no table."""
        at_s = trio.current_time() - self._start_s
        self._events.append((at_s, text))
        if not self._console.is_terminal:
            self._console.print(f"{at_s:5.1f} s  {text}")

    def _picture(self, plan: Plan, now_s: float) -> "RenderableType":
        from gridnode.demo.screen import live_view

        return live_view(self._view(now_s), plan, columns=self._console.width)

    def _view(self, now_s: float) -> "View":
        from gridnode.demo.screen import View

        tally = self._tally
        recent = [answered.took_s for answered in tally.recent(now_s)]
        known = tally.sent - tally.open
        return View(
            elapsed_s=now_s - self._start_s,
            seconds=self._options.seconds,
            sent=tally.sent,
            answered=len(tally.answered),
            refused=tally.refused,
            open=tally.open,
            in_time=1.0 if not known else (len(tally.answered) - tally.late) / known,
            p50_ms=quantile_ms(recent, 0.5),
            p99_ms=quantile_ms(recent, 0.99),
            nodes=tuple(self._node_view(name, peer_id, now_s) for name, peer_id in self._all_nodes()),
            events=tuple(self._events),
        )

    def _all_nodes(self) -> list[tuple[str, str]]:
        """Return name and peer id of the demo's nodes, and of those that somebody added by hand."""
        own = {node.peer_id: node.name for node in self._stage.nodes}
        return [(name, peer_id) for peer_id, name in (own | self._tally.names() | own).items()]

    def _node_view(self, name: str, peer_id: str, now_s: float) -> "NodeView":
        from gridnode.demo.screen import NodeView

        node = next((node for node in self._stage.nodes if node.peer_id == peer_id), None)
        own = [a for a in self._tally.recent(now_s) if a.result.node_id == peer_id]
        took_s = [answered.took_s for answered in own]
        offloaded, stolen = self._tally.counters_of(peer_id)
        executed = self._tally.executed(peer_id)
        return NodeView(
            name=name,
            role="entry" if node is self._stage.entry else "",
            cpu_share=None if node is None else node.plan.cpu_share,
            state="guest" if node is None else self._states[name],
            load=sum(a.result.timings.service_s for a in own) / RECENT_S,
            executed=executed,
            share=executed / max(1, len(self._tally.answered)),
            p50_ms=quantile_ms(took_s, 0.5),
            p99_ms=quantile_ms(took_s, 0.99),
            offloaded=offloaded,
            stolen=stolen,
        )


def _plan_text(plan: Plan) -> str:
    from gridnode.demo.screen import plan_text

    return plan_text(plan)


def _line(view: "View") -> str:
    """Write the state of things in one line, for logs."""
    shares = ", ".join(f"{node.name} {node.executed}" for node in view.nodes)
    return (
        f"{view.elapsed_s:5.1f} s  sent {view.sent}, answered {view.answered}, refused {view.refused}, "
        f"in flight {view.open}, in time {view.in_time:.1%}; {shares}"
    )
