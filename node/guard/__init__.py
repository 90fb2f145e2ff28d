"""The game guard: when the owner needs the machine, the node steps aside."""
