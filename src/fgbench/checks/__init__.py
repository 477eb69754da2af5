"""Is it right: estimates compared with the true gradient."""
