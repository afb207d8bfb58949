"""Content-addressed blobs on disk: staged chunk by chunk, proved, made durable, indexed, evicted."""

from p2pdist.store.blob import BlobFile, StoredBlob
from p2pdist.store.recheck import Recheck
from p2pdist.store.staging import Staging
from p2pdist.store.store import Store, Usage

__all__ = ["BlobFile", "Recheck", "Staging", "Store", "StoredBlob", "Usage"]
