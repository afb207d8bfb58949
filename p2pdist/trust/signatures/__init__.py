"""The signature formats, each pure: bytes, keys and a time in; who signed what out, or a Refused."""
