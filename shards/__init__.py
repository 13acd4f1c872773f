"""Datasets: image sources, packing into tar shards, verification, sample order, batches.

sources ──> pack ──> OUT/000000.tar ... + index.json + labels.npy ──> reader ──> stream
                               verify ─────┘                  order ────┘
"""
