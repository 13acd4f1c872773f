"""Limits on reading a damaged file."""

MAX_SECONDS = 20
MAX_BYTES = 64 * 10**6  # of Python objects; the inputs are a thousand times smaller
