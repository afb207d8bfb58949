#!/bin/sh
# Pushes a small image into the registry of compose.yaml, pulls it through all three agents at the same moment, and says
# how often the registry sent it, as its own log has it. Status 1 when that is more than about once.
set -eu
cd "$(dirname "$0")"
compose=${COMPOSE:-}
if [ -z "$compose" ]; then
  if docker compose version >/dev/null 2>&1; then compose="docker compose"; else compose=docker-compose; fi
fi

# shellcheck disable=SC2086  may be two words
said=$($compose run --rm -T try) || { echo "$said"; exit 1; }
echo "$said" | grep -v '^image '
name=$(echo "$said" | sed -n 's/^image \([^ ]*\) .*/\1/p')
size=$(echo "$said" | sed -n 's/^image [^ ]* //p' | tr -d '\r')

# shellcheck disable=SC2086
$compose logs --no-color registry | awk -v name="$name" -v size="$size" '
  # 172.18.0.4 - - [25/Nov/2026:00:00:00 +0000] "GET /v2/NAME/blobs/sha256:... HTTP/1.1" 206 65536 "" "agent"
  index($0, "\"GET /v2/" name "/blobs/") { sub(/.*"GET /, ""); if ($3 == 200 || $3 == 206) sent += $4 }
  END {
    copies = sent / size
    printf "The registry sent %.1f MiB of a %.1f MiB image: %.2f copies for 3 agents.\n", sent / 1048576, size / 1048576, copies
    exit !(copies >= 0.99 && copies <= 1.1)
  }'
