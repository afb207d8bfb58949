"""Bounds of everything that crosses the wire. Sizes in bytes, times in seconds."""

VERSION = 1  # of the agent-tracker and agent-agent protocol; another one is refused with a clear error

SMALL_CONTENT = 64 * 1024  # manifests, configs and blobs up to this size travel inside the tracker's answers
MAX_MANIFEST = 4 * 1024 * 1024  # distribution-spec recommends at least 4 MiB; more is refused

MIN_CHUNK = 64 * 1024
MAX_CHUNK = 16 * 1024 * 1024
MAX_CHUNKS = 65_536  # per blob: bitmaps stay under 8 KiB
MAX_BLOB = MAX_CHUNK * MAX_CHUNKS

MAX_TRACKER_FRAME = 8 * 1024 * 1024  # one WebSocket message, either direction
MAX_FRAME_MESSAGES = 65_536  # messages in one of them
MAX_BLOBS_PER_JOIN = 256
MAX_HOLDS_PER_MESSAGE = 4096
MAX_NEIGHBOURS = 64
MAX_SWARMS_PER_NODE = 4096
MAX_KEY = 1024  # length of a small-content key

MAX_PLATFORMS = 16  # of one preheat
MAX_DENIED = 4096  # entries of the deny list
MAX_DENIED_PER_MESSAGE = 32  # entries: a message stays below 64 KiB
MAX_WHY = 512  # characters of the reason of one

PIECE_SHOWN = 1024 * 1024  # bytes of a blob in one answer to a tracker that wants to see it
MAX_SUSPECTS = 4096  # chunks named false at once

MAX_LINK_FRAME = 64 * 1024  # one control-link frame between agents
MAX_HTTP_HEAD = 8 * 1024  # request or response head on the peer port
