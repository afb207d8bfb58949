#!/usr/bin/env python3
"""The coverage-guided fuzzer: `fuzz_coverage.py SECONDS FOLDER`. Exit status 0 when it found nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["p2pdist.trust", "p2pdist.oci"]):
    import fuzz_targets


def main() -> None:
    seconds, folder = sys.argv[1], Path(sys.argv[2])
    for number, seed in enumerate(fuzz_targets.seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(folder)], fuzz_targets.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
