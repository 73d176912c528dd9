"""Storage: content keys, atomic files, shards of arrays, tables with digests."""
