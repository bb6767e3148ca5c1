"""Neural modules and their configurations."""
