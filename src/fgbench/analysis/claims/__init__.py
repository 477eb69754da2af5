"""Published statements, compared with runs."""
