"""Hosts as network namespaces on one bridge, each with a link whose rates can be set, changed and cut while it runs.

A second bridge makes a second site; `lab.sites` joins the two by a link with a rate and a delay.

A host's uplink is shaped where it leaves the host (its own `eth0`), its downlink where the bridge's port towards it
sends: both ways by `tc tbf`, as a real access link would. Names carry a prefix per run, the namespaces share nothing
with the machine's own network, so several runs can stand side by side.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lab.guard import NETNS, Guard
from lab.process import LabError

T = TypeVar("T")

_TCP = Path("/proc/sys/net/ipv4")
_CLONE_NEWNET = 0x40000000
_BURST = "256k"  # bytes a bucket lets through at once: larger than a GSO super-packet, small against a chunk
_LATENCY = "50ms"  # of queue at most, in front of each link


def need_root_and_iproute2() -> None:
    """`LabError` with a clear text where the laboratory can't work."""
    if os.geteuid() != 0:
        raise LabError("the laboratory makes network namespaces: run it as root")
    for tool in ("ip", "tc", "bridge"):
        if not any((Path(p) / tool).exists() for p in ("/sbin", "/usr/sbin", "/bin", "/usr/bin")):
            raise LabError(f"{tool} is missing: apt-get install iproute2")


# /etc/netns/<name>/* over /etc/*, an empty place for what podman and skopeo remember of blobs, then the program itself
_PRIVATE = """
for f in /etc/netns/"$0"/*; do [ ! -e "$f" ] || mount --bind "$f" "/etc/${f##*/}"; done
[ ! -d /var/lib/containers ] || mount -t tmpfs lab /var/lib/containers
exec "$@"
"""


class Host:
    """One machine of the laboratory. Rates are in Mbit/s, None: unlimited. Made by `Network.host`."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.88.{number // 250}.{number % 250 + 1}"
        self.netns = f"{network.prefix}-{name}"
        self._network = network
        self._port = f"h{number}"
        self._shaped: set[str] = set()

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in this host, with mounts of its own; the program keeps the pid.

        What `ip netns exec` does, except that it would mount another /sys, where dockerd misses the cgroups.
        """
        enter = ["nsenter", f"--net={NETNS / self.netns}", "unshare", "--mount", "--propagation", "slave"]
        return [*enter, "sh", "-c", _PRIVATE, self.netns, *argv]

    def call(self, function: Callable[[], T]) -> T:
        """Runs `function` in a thread that has entered this host: sockets that it makes belong to the host."""
        return in_netns(self.netns, function)

    def set_rate(self, *, up: float | None, down: float | None) -> None:
        """Sets both rates, also while traffic flows."""
        self._shape(self.netns, "eth0", up)
        self._shape(self._network.hub, self._port, down)

    def cut(self) -> None:
        """Everything to and from the host is silently lost; neither side sees the link go down."""
        _run(["bridge", "-n", self._network.hub, "link", "set", "dev", self._port, "state", "0"])

    def mend(self) -> None:
        _run(["bridge", "-n", self._network.hub, "link", "set", "dev", self._port, "state", "3"])

    def sent(self) -> int:
        """Bytes that left the host through its link since it was made."""
        return self._network.counters()[self.name][0]

    def received(self) -> int:
        return self._network.counters()[self.name][1]

    def names(self, table: dict[str, str]) -> None:
        """What /etc/hosts says to programs started in this host from now on; no name server is in reach."""
        directory = Path("/etc/netns") / self.netns
        directory.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in table.items())]
        (directory / "hosts").write_text("\n".join(lines) + "\n")
        (directory / "resolv.conf").write_text("# none\n")

    def _shape(self, netns: str, device: str, rate: float | None) -> None:
        if rate is None:
            if device in self._shaped:
                self._shaped.remove(device)
                _run(["tc", "-n", netns, "qdisc", "del", "dev", device, "root"])
            return
        shape = ["tbf", "rate", f"{round(rate * 1_000_000)}bit", "burst", _BURST, "latency", _LATENCY]
        _run(["tc", "-n", netns, "qdisc", "replace", "dev", device, "root", "handle", "1:", *shape])
        self._shaped.add(device)


def _bridge_only() -> None:
    """A bridge that is only a switch: where Docker loaded br_netfilter every packet would go through iptables."""
    for name in ("iptables", "ip6tables", "arptables"):
        switch = Path("/proc/sys/net/bridge") / f"bridge-nf-call-{name}"
        if switch.exists():
            switch.write_text("0")


class Network:
    """The bridge and the hosts on it. What it makes is reported to the guard, which takes it down."""

    def __init__(self, guard: Guard, prefix: str) -> None:
        self.prefix = prefix
        self.hub = f"{prefix}-hub"
        self.hosts: dict[str, Host] = {}
        self._guard = guard
        self._hub_counters: int | None = None
        self._trunks: tuple[str, ...] = ()
        _allow_cubic()
        guard.netns(self.hub)
        _batch(["ip"], [f"netns add {self.hub}"])
        _batch(["ip", "-n", self.hub], ["link add br0 type bridge", "link set br0 up", "link set lo up"])
        in_netns(self.hub, _bridge_only)

    def host(self, name: str, *, up: float | None = None, down: float | None = None, bridge: str = "br0") -> Host:
        """A new host, linked to the bridge at the given rates (Mbit/s)."""
        number = len(self.hosts)
        host = Host(self, name, number)
        self._guard.netns(host.netns)
        port = f"h{number}"
        link = f"link add eth0 netns {host.netns} type veth peer name {port} netns {self.hub}"
        _batch(["ip"], [f"netns add {host.netns}", link])
        _batch(["ip", "-n", self.hub], [f"link set {port} master {bridge} up"])
        address = f"addr add {host.address}/16 dev eth0"
        _batch(["ip", "-n", host.netns], ["link set lo up", address, "link set eth0 up"])
        # Not every machine's default: bbr's own pacing and a token bucket fight each other.
        host.call(lambda: (_TCP / "tcp_congestion_control").write_text("cubic"))
        host.set_rate(up=up, down=down)
        self.hosts[name] = host
        return host

    def counters(self) -> dict[str, tuple[int, int]]:
        """(sent, received) bytes of every host's link, counted after shaping: what really crossed it."""
        if self._hub_counters is None:
            self._hub_counters = in_netns(self.hub, lambda: os.open("/proc/thread-self/net/dev", os.O_RDONLY))
        text = os.pread(self._hub_counters, 1 << 20, 0).decode()
        rows = {}
        for line in text.splitlines()[2:]:
            device, _, rest = line.partition(":")
            fields = rest.split()
            rows[device.strip()] = (int(fields[0]), int(fields[8]))  # the port receives what the host sent
        return {name: rows[f"h{i}"] for i, name in enumerate(self.hosts)} | {
            name: rows[name] for name in self._trunks if name in rows
        }

    def join(self, one: str, other: str) -> None:
        """Two more TAP devices in the hub, `one` on the first bridge and `other` on a new one, which is a second site.

        Whoever opens the devices carries what they send. From now on `counters` have them, too: as sent, what came out
        of the link there.
        """
        devices = [f"tuntap add {one} mode tap", f"tuntap add {other} mode tap"]
        ports = [f"link set {one} master br0 up", f"link set {other} master br1 up"]
        _batch(["ip", "-n", self.hub], ["link add br1 type bridge", "link set br1 up", *devices, *ports])
        self._trunks = (one, other)

    def close(self) -> None:
        """Lets go of the namespaces; the guard removes them."""
        if self._hub_counters is not None:
            os.close(self._hub_counters)
            self._hub_counters = None


def in_netns(netns: str, function: Callable[[], T]) -> T:
    """Runs `function` in a fresh thread inside the named namespace and hands back what it returned or raised."""
    result: list[T] = []
    error: list[BaseException] = []

    def enter() -> None:
        try:
            fd = os.open(NETNS / netns, os.O_RDONLY)
            try:
                # A namespace is a property of the thread: this one never returns to the pool, so nothing leaks.
                if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
                    raise LabError(f"setns {netns}: {os.strerror(ctypes.get_errno())}")
            finally:
                os.close(fd)
            result.append(function())
        except BaseException as e:  # noqa: BLE001  handed to the caller's thread
            error.append(e)

    thread = threading.Thread(target=enter, name=f"in {netns}")
    thread.start()
    thread.join()
    if error:
        raise error[0]
    return result[0]


def _allow_cubic() -> None:
    """Namespaces may only choose what the machine allows. The one thing that a run leaves as it made it: another run
    may rely on it by then, and the machine's own default stays what it was."""
    allowed = _TCP / "tcp_allowed_congestion_control"
    if "cubic" not in allowed.read_text().split():
        allowed.write_text(f"{allowed.read_text().strip()} cubic")


def _run(argv: Sequence[str]) -> None:
    done = subprocess.run(list(argv), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")


def _batch(argv: Sequence[str], lines: Sequence[str]) -> None:
    text = "\n".join(lines) + "\n"
    done = subprocess.run([*argv, "-batch", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} {'; '.join(lines)}: {done.stderr.strip()}")
