"""The data plane: image sources, packing into tar shards, verification, the global sample order, and reading batches.

sources ──> pack ──> OUT/000000.tar ... + index.json + labels.npy ──> reader ──> uint8 batches [b, C, H, W]
                               verify ─────┘                  order ────┘
"""
