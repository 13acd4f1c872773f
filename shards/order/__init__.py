"""The global order of samples."""
