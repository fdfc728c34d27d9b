"""Keys, certificates and pinned addresses of a site."""
