"""Imports of libp2p that this node's control plane never uses, left out: `import libp2p` alone loads 1,250 modules.

libp2p's packages import everything they offer when any part of them is wanted: QUIC, WebSocket, mDNS, UPnP, relays,
ACME certificates, a DHT, RSA, Prometheus. We speak TCP, a security protocol of our own, yamux and gossipsub. Owns
the list of what is left out and what stands in its place; knows nothing of what libp2p does. Must be called before
libp2p is imported for the first time; where it is there already, or in another version than the list was made for,
everything stays whole: slower, never wrong.

Two ways to leave out. The body of a *hollow* package is not run, its modules load as ever. An *absent* module is
empty; each name that is imported from it is a placeholder, good for annotations, ``isinstance`` and ``except``. A
placeholder that is called raises LeftOutError, which names it, and is kept in ``touched``. Peers can bring that about
by sending an RSA or secp256k1 key, which no certificate of a grid holds: there it costs them their message, like any
other malformed one (transport.libp2p_guards).
"""

import sys
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final, NoReturn

from transport.wire import TransportError

VERSION: Final = "0.8.1"
"""The libp2p that the lists below were made for."""
HOLLOW: Final = frozenset({"libp2p", "libp2p.security", "libp2p.transport"})
"""Packages whose body only gathers names for others."""
ABSENT: Final = (
    "libp2p.crypto.rsa",
    "libp2p.crypto.secp256k1",
    "libp2p.discovery",
    "libp2p.rcmgr.allowlist",
    "libp2p.rcmgr.cidr_limits",
    "libp2p.rcmgr.circuit_breaker",
    "libp2p.rcmgr.connection_lifecycle",
    "libp2p.rcmgr.connection_limits",
    "libp2p.rcmgr.connection_pool",
    "libp2p.rcmgr.connection_tracker",
    "libp2p.rcmgr.graceful_degradation",
    "libp2p.rcmgr.memory_limits",
    "libp2p.rcmgr.memory_pool",
    "libp2p.rcmgr.memory_stats",
    "libp2p.rcmgr.prometheus_exporter",
    "libp2p.rcmgr.rate_limiter",
    "libp2p.rcmgr.token_bucket",
    "libp2p.relay",
    "libp2p.security.pnet",
    "libp2p.security.tls",
    "libp2p.transport.quic",
    "libp2p.utils.version",
    "multiaddr.resolvers",
    "prometheus_client",
)
"""Modules, and packages with all that is below, that are not loaded."""


class LeftOutError(TransportError):
    """A part of libp2p was used that is left out; our own fault, unless a peer's key is of a kind no grid has."""


touched: Final[list[str]] = []
"""Placeholders that were called, newest last, at most TOUCHED_MAX; for tests and status."""
TOUCHED_MAX: Final = 32


def _touch(name: str) -> NoReturn:
    if len(touched) < TOUCHED_MAX:
        touched.append(name)
    raise LeftOutError(f"{name} is left out of this node; take it off the list in transport.libp2p_imports to use it")


class _PlaceholderType(ABCMeta):
    """Makes placeholders: classes that may be named but not used."""

    def __call__(cls, *_: object, **__: object) -> NoReturn:
        _touch(f"{cls.__module__}.{cls.__qualname__}")

    def __getattr__(cls, name: str) -> "_PlaceholderType":
        if name.startswith("__"):
            raise AttributeError(name)
        placeholder = _placeholder(cls.__module__, f"{cls.__qualname__}.{name}")
        setattr(cls, name, placeholder)
        return placeholder


def _placeholder(module: str, name: str) -> _PlaceholderType:
    # An exception, so that an `except` which names it stays good.
    return _PlaceholderType(name, (Exception,), {"__module__": module, "__qualname__": name})


class _IdleResolver:
    """Stands in for multiaddr's DNSResolver, which each swarm makes and only the stock dialer asks."""

    def __getattr__(self, name: str) -> NoReturn:
        _touch(f"multiaddr.resolvers.DNSResolver.{name}")


def _agent_version() -> str:
    """Stand in for libp2p's own, which reads its metadata with the standard library's mail parser at import."""
    return f"py-libp2p/{VERSION}"


_STAND_INS: Final[Mapping[str, Mapping[str, object]]] = {
    "libp2p.utils.version": {"get_agent_version": _agent_version},
    "multiaddr.resolvers": {"DNSResolver": _IdleResolver},
}


class _EmptyLoader(Loader):
    """Fills a module with placeholders on demand, or a hollow package with nothing."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave the making of the module to the import system."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its names."""
        name = module.__name__
        if name in HOLLOW:
            module.__getattr__ = lambda missing: _refuse(name, missing)  # type: ignore[method-assign]
            return
        vars(module).update(_STAND_INS.get(name, {}))

        def make(wanted: str) -> _PlaceholderType:
            if wanted.startswith("__"):
                raise AttributeError(wanted)
            placeholder = _placeholder(name, wanted)
            setattr(module, wanted, placeholder)
            return placeholder

        module.__getattr__ = make  # type: ignore[method-assign]


def _refuse(package: str, name: str) -> NoReturn:
    """Answer for a name of a hollow package, as the import system wants it."""
    raise AttributeError(f"{package}.{name} is left out; import libp2p before transport.libp2p_imports to have it")


class _Finder(MetaPathFinder):
    """Finds hollow and absent modules before the real ones are."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how an import of a module goes; None for modules that load as ever."""
        if fullname in HOLLOW:
            real = PathFinder.find_spec(fullname, path)
            if real is None:
                return None
            hollow = ModuleSpec(fullname, _EmptyLoader(), origin=real.origin, is_package=True)
            hollow.submodule_search_locations = real.submodule_search_locations
            return hollow
        if any(fullname == absent or fullname.startswith(f"{absent}.") for absent in ABSENT):
            return ModuleSpec(fullname, _EmptyLoader(), is_package=True)
        return None


def leave_out() -> bool:
    """Have later imports of libp2p leave out what is not used; returns whether that was possible. May be repeated."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return True
    if "libp2p" in sys.modules or not _is_known_version():
        return False
    sys.meta_path.insert(0, _Finder())
    return True


def _is_known_version() -> bool:
    """Look at the name of libp2p's metadata folder; reading the metadata would cost more than all the rest here."""
    spec = PathFinder.find_spec("libp2p")
    if spec is None or not spec.submodule_search_locations:
        return False
    return (Path(spec.submodule_search_locations[0]).parent / f"libp2p-{VERSION}.dist-info").is_dir()
