"""How a process runs: the command line, errors, interruption, the device."""
