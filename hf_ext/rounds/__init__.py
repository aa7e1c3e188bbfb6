"""Several trainings in a row, each an ordinary run in its own folder; a killed one goes on where it was."""
