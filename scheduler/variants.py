"""Policies by name and arguments: `jsq(d=2)`, `capd(steal=no)`, `jsed(d=3, inflight=yes)`; daemon and simulator alike.

A name stands for a policy and for the mechanisms around it. `capd` is the default configuration. The baselines are
what their literature describes and nothing else: no trust, no windows, no states on replies, no correction for jobs on
their way, no stealing, no offers, no second look by the receiver, and every peer known in the active set. Each can be
switched on again by an argument, and every mechanism of `capd` off, which is what tables of ablations are made of.

Admission (shedding, slack, expiry) belongs to the experiment rather than to the policy, so a name leaves it alone
unless an argument says otherwise. `configure` applied twice changes nothing more.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from scheduler import policy as registry
from scheduler.config import CoreConfig
from scheduler.policy import Policy
from scheduler.types import SchedulerError


class PolicyNameError(SchedulerError):
    """A policy's name, or an argument of it, is not known or out of range: the author's fault."""


class Argument(msgspec.Struct, frozen=True):
    """What may stand behind a key."""

    about: str
    path: str = ""
    """Section and field of CoreConfig; empty where the policy's constructor takes it."""
    low: float = 0.0
    high: float = 1e6
    is_switch: bool = False
    is_whole: bool = False
    off: object = False
    """What a switch sets when it is off ..."""
    on: object = True
    """... and when it is on."""

    @property
    def allowed(self) -> str:
        """Tell the allowed values."""
        if self.is_switch:
            return "yes or no"
        kind = "a whole number" if self.is_whole else "a number"
        return f"{kind} from {self.low:g} to {self.high:g}"


def _switch(about: str, path: str = "", *, off: object = False, on: object = True) -> Argument:
    return Argument(about, path, is_switch=True, off=off, on=on)


def _count(about: str, path: str = "", high: float = 4096) -> Argument:
    return Argument(about, path, low=1, high=high, is_whole=True)


COMMON: Final[dict[str, Argument]] = {
    "active": _count("peers that jobs are placed on", "peers.active"),
    "batch": _count("most jobs of one execution; 1 is none", "queue.batch_jobs", high=1024),
    "batch_wait": Argument("longest wait for a batch to fill, in seconds", "queue.batch_wait_s", high=1.0),
    "expire": _switch("jobs end at their deadline", "placement.expire"),
    "gossip": Argument("mean seconds between two records of a node", "advert.period_s", low=0.01, high=1e4),
    "hedge": Argument("share of jobs that may run twice; 0 is none", "hedge.share", high=1.0),
    "hops": _count("most moves of a job", "placement.hop_limit", high=16),
    "hysteresis": Argument("least gain of a move, as a share; 0 is none", "placement.hysteresis", high=1.0),
    "inflight": _switch("own jobs on their way count at the peer", "placement.inflight_correction"),
    "offer": _switch("large payloads wait for the peer's word", "offer.enabled"),
    "on_change": _switch("records are sent when the load has changed much, too", "advert.on_change"),
    "piggyback": _switch("states on replies are used", "placement.piggyback"),
    "reconsider": _switch(
        "receivers pass on what they would finish much later than the sender thought",
        "placement.receiver",
        off="keeps",
        on="reconsiders",
    ),
    "reversion": Argument(
        "services in which old records revert to their mean; 0 is none", "estimate.reversion_services"
    ),
    "shed": _switch("jobs that no node can finish in time are refused at arrival", "placement.shedding"),
    "slack": Argument("share of the time to spare that a wait may use; 1 is all", "placement.slack", low=0.01, high=1),
    "steal": _switch("idle nodes ask for work", "steal.enabled"),
    "trust": _switch("peers that answer late lose share", "estimate.trust"),
    "wait_weight": Argument("weight of a wait beyond the own; 0 is none", "placement.wait_weight", high=1e3),
    "window": _switch("jobs open at one peer are bounded", "window.enabled"),
}
"""Arguments that every policy takes."""

_D = {"d": _count("peers compared per decision", "placement.sample")}
_WEIGHTED = {"weighted": _switch("peers are drawn by speed rather than evenly")}

_OWN: Final[Mapping[str, dict[str, Argument]]] = {
    "capd": _D,
    "jiq": _WEIGHTED,
    "jsed": _D | _WEIGHTED,
    "jsq": _D,
    "prequal": {
        "quantile": Argument("share of the probes that count as cold", high=1.0),
        "pool": _count("probes kept", high=256),
        "probes": Argument("probes sent per job", high=16.0),
    },
    "probe": _D,
}
"""Further arguments by policy."""

_PLAIN: Final[dict[str, object]] = {
    "advert.on_change": False,
    "estimate.reversion_services": 0.0,
    "estimate.trust": False,
    "hedge.share": 0.0,
    "offer.enabled": False,
    "peers.active": 4096,
    "placement.hop_limit": 1,
    "placement.hysteresis": 0.0,
    "placement.inflight_correction": False,
    "placement.piggyback": False,
    "placement.receiver": "keeps",
    "placement.wait_weight": 0.0,
    "steal.enabled": False,
    "window.enabled": False,
}
"""The plain form of the literature."""

_STOCK: Final[Mapping[str, Mapping[str, object]]] = {
    "c3": _PLAIN | {"placement.piggyback": True},
    "capd": {},
    "jiq": _PLAIN | {"advert.on_change": True},
    "jsed": _PLAIN | {"placement.sample": 2},
    "jsed_all": _PLAIN,
    "jsq": _PLAIN | {"placement.sample": 2},
    "least_queue": _PLAIN,
    "local_only": _PLAIN | {"placement.hop_limit": 0},
    "max_spare": _PLAIN | {"placement.receiver": "redecides", "placement.hop_limit": 3},
    "prequal": _PLAIN | {"placement.piggyback": True},
    "probe": _PLAIN | {"placement.sample": 2},
    "random": _PLAIN,
    "round_robin": _PLAIN,
    "steal_only": _PLAIN | {"steal.enabled": True},
    "weighted_random": _PLAIN,
}
"""What each name sets before its arguments. A rule that lives on answers uses the states that come with them. Never to
move is a hop limit of 0: the last look for a job that would be late would move it otherwise."""

_NAME: Final = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


def names() -> list[str]:
    """Return the names of all policies, sorted."""
    return registry.names()


def arguments(name: str) -> Mapping[str, Argument]:
    """Return what a policy takes, by key, sorted."""
    return dict(sorted((COMMON | _OWN.get(name, {})).items()))


def configure(base: CoreConfig, name: str) -> CoreConfig:
    """Return a configuration under which a core follows a policy with its arguments.

    Parameters
    ----------
    base : CoreConfig
        All that the name does not settle.
    name : str
        `NAME` or `NAME(key=value, ...)`.

    Raises
    ------
    PolicyNameError
        Names what is wrong, its value, and what is allowed.

    Examples
    --------
    >>> config = configure(CoreConfig(), "jsq(d=3, steal=yes)")
    >>> config.placement.sample, config.steal.enabled, config.estimate.trust
    (3, True, False)
    """
    policy, given = parse(name)
    values = dict(_STOCK.get(policy, {}))
    known = arguments(policy)
    values |= {known[key].path: value for key, value in given.items() if known[key].path}
    if "peers.active" in values:
        values["peers.active"] = min(int(str(values["peers.active"])), base.peers.peers)
    values["placement.policy"] = " ".join(name.split())
    sections: dict[str, dict[str, object]] = {}
    for path, value in values.items():
        section, _, field = path.partition(".")
        sections.setdefault(section, {})[field] = value
    changes = {
        section: msgspec.structs.replace(getattr(base, section), **fields) for section, fields in sections.items()
    }
    return msgspec.structs.replace(base, **changes)


def make(name: str) -> Policy:
    """Make the policy of a name with its arguments.

    Raises
    ------
    PolicyNameError
        As `configure` does.
    """
    policy, given = parse(name)
    known = arguments(policy)
    own = {key: value for key, value in given.items() if not known[key].path}
    return registry.make_policy(policy, **own)  # type: ignore[arg-type]


def parse(name: str) -> tuple[str, dict[str, object]]:
    """Split a name into the policy's and its arguments, read and checked.

    Raises
    ------
    PolicyNameError
        As `configure` does.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise PolicyNameError(f"policy {name!r} is neither NAME nor NAME(key=value, ...), as in jsq(d=2)")
    policy = match[1]
    if policy not in names():
        raise PolicyNameError(f"no policy is named {policy!r}; there are {', '.join(names())}")
    known = arguments(policy)
    given: dict[str, object] = {}
    for part in [part.strip() for part in (match[2] or "").split(",") if part.strip()]:
        key, sign, text = [each.strip() for each in part.partition("=")]
        if not sign or key not in known:
            raise PolicyNameError(f"{policy} has no argument {key!r}; it takes key=value of {', '.join(known)}")
        if key in given:
            raise PolicyNameError(f"{policy}: {key} is given twice")
        given[key] = _read(policy, key, text, known[key])
    return policy, given


def _read(policy: str, key: str, text: str, argument: Argument) -> object:
    wrong = PolicyNameError(f"{policy}: {key} is {text!r}; it must be {argument.allowed}")
    if argument.is_switch:
        if text not in ("yes", "no"):
            raise wrong
        return argument.on if text == "yes" else argument.off
    try:
        value = float(text)
    except ValueError:
        raise wrong from None
    if not argument.low <= value <= argument.high or (argument.is_whole and value != int(value)):
        raise wrong
    return int(value) if argument.is_whole else value
