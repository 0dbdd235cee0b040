"""When timers ring that need no exact moment: together, so that an idle process wakes once for all of them. Pure.

A wake-up of trio for a timer costs as much as what most timers are for. Processes are not in step with each other: each
one's clock begins at a time of its own.
"""


def next_beat_s(now_s: float, period_s: float) -> float:
    """Return the next moment of the process's beat of this period.

    Parameters
    ----------
    now_s : float
        On trio's clock, in seconds.
    period_s : float
        Time between two beats, in seconds, > 0. Of two periods the longer should be a multiple of the shorter.

    Returns
    -------
    float
        Later than now by at most a period, in seconds.

    Examples
    --------
    >>> next_beat_s(17.2, 0.5), next_beat_s(17.5, 0.5), next_beat_s(17.2, 10.0)
    (17.5, 18.0, 20.0)
    """
    return (now_s // period_s + 1.0) * period_s
