"""Runs one command at a wall-clock instant and says when it ended: how the bench drives a real client.

timed.py <second> <argv...>     the two-line conversation of puller.py; "verified" says that the command succeeded,
                                which for a container program includes every digest
"""

import json
import subprocess
import sys
import time


def main() -> None:
    at, *argv = sys.argv[1:]
    time.sleep(max(0.0, float(at) - time.time()))
    start = time.time()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    error = f"status {done.returncode}" if done.returncode else ""
    print(json.dumps({"start": start, "end": time.time(), "layers": [], "error": error}), flush=True)
    sys.stdin.readline()
    print(json.dumps({"verified": not error, "wrong": []}), flush=True)


if __name__ == "__main__":
    main()
