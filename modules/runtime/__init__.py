"""The machine under us: paths, flags, devices, logs."""
