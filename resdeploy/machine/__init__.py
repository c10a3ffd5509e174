"""The machine: environment, state, CPU features, probe, doctor, compatibility."""
