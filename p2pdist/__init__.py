"""p2pdist: peer-to-peer container image distribution. docs/ and the README say how the parts fit together."""

__version__ = "0.1.0"
