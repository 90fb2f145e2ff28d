"""The node: I/O around the rules of `protocol/`, one foreign library per file.

Rule of this package: each piece of state has one owner, tasks talk over bounded channels, one cancel scope
holds a query, and `app.py` is the only place where everything is built.
"""
