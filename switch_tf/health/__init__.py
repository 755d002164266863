"""Rules that find faults of routers in the numbers of a run; numpy alone."""
