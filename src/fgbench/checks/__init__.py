"""Checks: estimates compared with the true gradient."""
