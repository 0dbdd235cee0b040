"""The offload graph as inline SVG: where jobs came in, where they ran, and how many went which way."""

from collections.abc import Sequence
from html import escape

from gridnode.simulation.svg import CHARACTER, COLOURS, TOP, WIDTH, svg, text_at


def offload_graph(flows: Sequence[tuple[str, str, int]]) -> str:
    """Draw jobs from where they came in (left) to where they ran (right), widths in proportion.

    Parameters
    ----------
    flows : sequence of (entry, executor, jobs)
        With jobs only.
    """
    total = sum(jobs for _, _, jobs in flows)
    if not total:
        return ""
    entries = list(dict.fromkeys(entry for entry, _, _ in flows))
    executors = sorted({executor for _, executor, _ in flows}, key=lambda name: (name not in entries, name))
    names = list(dict.fromkeys([*sorted(entries), *executors]))
    rows = max(len(entries), len(executors))
    gap = 6.0
    height = max(180.0, min(460.0, 34.0 * rows))
    scale = (height - gap * (rows - 1)) / total
    margin = 16 + CHARACTER * max(len(name) for name in names)
    tops = (
        _stack(sorted(entries), [(entry, jobs) for entry, _, jobs in flows], scale, gap),
        _stack(executors, [(executor, jobs) for _, executor, jobs in flows], scale, gap),
    )
    colour = {name: f"var(--c{place % COLOURS})" for place, name in enumerate(names)}
    x0, x1 = margin + 14, WIDTH - margin - 14
    body = _ribbons(sorted(flows), executors, tops, scale, (x0, x1), colour)
    for side, top in enumerate(tops):
        for name, (y, size) in top.items():
            at = x0 - 12 if not side else x1
            body.append(
                f'<rect x="{at:.1f}" y="{y + TOP:.1f}" width="12" height="{max(1.0, size):.1f}" '
                f'style="fill:{colour[name]}"/>'
            )
            label = at - 6 if not side else at + 18
            body.append(text_at(label, y + TOP + size / 2 + 4, name, anchor="start" if side else "end"))
    return svg(height + 2 * TOP, body, "jobs from entry to executor")


def _stack(
    names: Sequence[str], amounts: Sequence[tuple[str, int]], scale: float, gap: float
) -> dict[str, tuple[float, float]]:
    """Return top and height of each name's block, one below the other."""
    found, y = {}, 0.0
    for name in names:
        size = scale * sum(jobs for each, jobs in amounts if each == name)
        found[name] = (y, size)
        y += size + gap
    return found


def _ribbons(
    flows: Sequence[tuple[str, str, int]],
    executors: Sequence[str],
    tops: tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]],
    scale: float,
    ends: tuple[float, float],
    colour: dict[str, str],
) -> list[str]:
    """Draw a band per flow, in an order that crosses little."""
    left = {name: top for name, (top, _) in tops[0].items()}
    right = {name: top for name, (top, _) in tops[1].items()}
    (x0, x1), middle = ends, sum(ends) / 2
    body = []
    for entry, executor, jobs in sorted(flows, key=lambda flow: (flow[0], executors.index(flow[1]))):
        size = jobs * scale
        a, b = left[entry] + TOP, right[executor] + TOP
        left[entry] += size
        right[executor] += size
        body.append(
            f'<path class="ribbon" style="fill:{colour[entry]}" d="M{x0:.1f},{a:.1f} C{middle:.1f},{a:.1f} '
            f"{middle:.1f},{b:.1f} {x1:.1f},{b:.1f} L{x1:.1f},{b + size:.1f} C{middle:.1f},{b + size:.1f} "
            f'{middle:.1f},{a + size:.1f} {x0:.1f},{a + size:.1f} Z"><title>{escape(entry)} → {escape(executor)}: '
            f"{jobs} jobs</title></path>"
        )
    return body
