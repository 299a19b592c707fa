"""tests of manifests."""
