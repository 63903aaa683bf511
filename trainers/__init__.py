"""Systems, their training loop and their inference.  Import the modules by name: nothing is imported here."""
