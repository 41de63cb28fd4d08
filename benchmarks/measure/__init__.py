"""How it is measured: processes, the timing function, the choice of settings, the machine."""
