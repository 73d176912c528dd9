"""How things are kept: content keys, whole files, shards of arrays, tables with digests."""
