"""A checkpoint's statistics on its task: shared out among processes, resumed, in the memory there is."""
