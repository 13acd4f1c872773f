"""Shards behind a URL: fetching, the cache of a node, and fetching ahead."""
