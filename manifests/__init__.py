"""Manifests: what a data set is; schemas, masks, shards, releases and their verification."""
