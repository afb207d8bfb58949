"""The laboratory: hosts, links and real daemons on one machine, for the system tests and the benches.

Hosts are network namespaces joined by a bridge, with shaped links. Everything that a run makes (processes, namespaces,
mounts, directories) is written down with a guard process first, and the guard takes it away when the run ends, however
it ends: also after Ctrl-C and after SIGKILL of the run itself.

`lab.lab.Lab` is where to start. Needs root, iproute2 and what is started from Debian's packages
(tests/system/packages.sh).
"""
