"""``petscale train``: what is checked first (planning), the driver, the worker, and what a run records."""
