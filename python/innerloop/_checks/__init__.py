"""Every exception about an argument, each condition in one place, before any work: a file says
which of the words solver, network, objective and engine its checks serve. They read shapes, never
data, but for one that says so."""
