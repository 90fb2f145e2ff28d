"""Engines that are HTTP servers which the operator already runs."""
