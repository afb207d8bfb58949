"""One manifest or blob, single flight, whoever asks: store -> cluster -> upstream -> proved -> store.

The mirror's `Source`. Manifests and small blobs come inside the tracker's answers, one node reading each from the
upstream for all; larger blobs come through the swarms of their image. With no tracker everything still works, one
verified read from upstream at a time. A client that leaves never cancels a flight.
"""

from p2pdist.pull.cluster import Cluster
from p2pdist.pull.handle import Handle
from p2pdist.pull.manifests import FoundManifest
from p2pdist.pull.settings import PullSettings
from p2pdist.pull.source import Pull

__all__ = ["Cluster", "FoundManifest", "Handle", "Pull", "PullSettings"]
