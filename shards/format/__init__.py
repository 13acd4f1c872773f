"""The shard format: raw pixels, PNG and JPEG files, and the index."""
