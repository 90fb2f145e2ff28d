"""The verbs of `mtor`: thin, each in the file of its subject; `cli.py` only finds and calls them."""
