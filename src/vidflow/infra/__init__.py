"""Access to the outside world: servers, files, processes and libraries. Thin and typed, without decisions."""
